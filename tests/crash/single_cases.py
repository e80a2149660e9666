"""Single files that are replaced in place: what was there before must not be lost."""

from collections.abc import Sequence
from pathlib import Path

from lazyfs.documents.lockfile import rewrite_file
from lazyfs.store.paths import Store
from lazyfs.store.pins import pinned_images, save_pin
from tests.crash.cases import RIGHT, Case, Mark, Outcome, Place, Verdict, mark, promised
from tests.crash.store_cases import cache_of

OLD, NEW = (f"sha256:{digit * 64}" for digit in "12")
TEMPLATE = "name: t\ncontainers:\n- name: main\n  image: busybox:latest\n" + "# kept\n" * 100
REFERENCE = "busybox:latest"
PINNED = f"docker.io/library/busybox@{NEW}"
DONE = "done"


class Pins(Case):
    """What a sandbox needs of the cache, now that it needs more."""

    name = "pin"

    def prepare(self, place: Place) -> None:
        holder = self._holder(place)
        holder.mkdir(parents=True)
        save_pin(Store(cache_of(place)), holder, [OLD])

    def act(self, place: Place) -> None:
        save_pin(Store(cache_of(place)), self._holder(place), [OLD, NEW])
        mark(DONE)

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        store = Store(cache_of(place))
        found = set(pinned_images(store))
        wanted = {OLD, NEW} if DONE in promised(marks, at) else {OLD}
        if not wanted <= found:
            return Verdict(Outcome.LOST, f"got pins of {found}")
        self.act(place)
        return RIGHT if set(pinned_images(store)) == {OLD, NEW} else Verdict(Outcome.STUCK)

    @staticmethod
    def _holder(place: Place) -> Path:
        return place.outside / "sandboxes" / "c1"


class Rewritten(Case):
    """``lazyfs resolve --write`` of a user's own file."""

    name = "rewrite a template"

    def prepare(self, place: Place) -> None:
        self._path(place).write_text(TEMPLATE)

    def act(self, place: Place) -> None:
        rewrite_file(self._path(place), {REFERENCE: PINNED})
        mark(DONE)

    def check(self, place: Place, marks: Sequence[Mark], at: int, number: int) -> Verdict:
        found = self._path(place).read_text()
        rewritten = TEMPLATE.replace(REFERENCE, PINNED)
        if found != rewritten and (DONE in promised(marks, at) or found != TEMPLATE):
            return Verdict(Outcome.LOST, f"got {found[:60]!r}, {len(found)} characters")
        return RIGHT

    @staticmethod
    def _path(place: Place) -> Path:
        return place.root / "disk" / "template.yaml"


SINGLE_CASES: tuple[Case, ...] = (Pins(), Rewritten())
