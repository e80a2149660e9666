"""Which of the states that a disk may be left in are looked at: the telling ones, then any."""

import itertools
import random
from collections.abc import Iterator

from tests.crash.disk import (
    NEVER,
    PAGE,
    SECTOR,
    ZERO_PAGE,
    Content,
    Disk,
    File,
    Order,
    State,
)

# What becomes of what was not synced, in the states that are looked at for each event.
NAMES = ("all", "least")
DATA = ("all", "lost", "size only", "torn")
ORDERS = (Order.JOURNAL, Order.FOLDERS)


def all_states(disk: Disk, seed: int) -> Iterator[State]:
    """Yield states without an end; each tree once, as long as there are others.

    First those in which one rule holds for all files: when something was promised, and at every
    event; in an order that is drawn with *seed*, so that a part of them says something about all.
    Then any.
    """
    drawn = random.Random(seed)
    seen: set[int] = set()
    promises = {at for at, _ in disk.marks} | {len(disk.events) - 1}
    others = set(range(len(disk.events))) - promises
    telling = []
    for places in (promises, others):
        rules = list(itertools.product(sorted(places), ORDERS, NAMES, DATA))
        drawn.shuffle(rules)
        telling += rules
    for place, order, names, data in telling:
        state = _telling(disk, place, order, names, data, drawn)
        mark = state.fingerprint()
        if mark not in seen:
            seen.add(mark)
            yield state
    misses = 0
    while misses < 500:
        state = _any(disk, drawn)
        mark = state.fingerprint()
        if mark in seen:
            misses += 1
            continue
        misses = 0
        seen.add(mark)
        yield state


def _telling(
    disk: Disk, place: int, order: Order, names: str, data: str, drawn: random.Random
) -> State:
    cuts = _cuts(disk, place, order, None if names == "all" else drawn, least=True)
    contents = {}
    for number, file in disk.files.items():
        floor = cuts.get(_journal(disk, number), NEVER) if order is Order.JOURNAL else NEVER
        first, last = file.versions(place, floor)
        if data == "all" or first == last:
            continue
        contents[number] = _content(file, first, last, data, drawn)
    story = f"event {place}, {order.value}: names {names}, data {data}"
    return _state(disk, place, order, cuts, contents, story)


def _any(disk: Disk, drawn: random.Random) -> State:
    place = drawn.randrange(len(disk.events))
    order = drawn.choice(ORDERS)
    cuts = _cuts(disk, place, order, drawn, least=False)
    contents = {}
    told = []
    for number, file in disk.files.items():
        floor = cuts.get(_journal(disk, number), NEVER) if order is Order.JOURNAL else NEVER
        first, last = file.versions(place, floor)
        if first == last:
            continue
        what = drawn.choice((*DATA, "one before"))
        told.append(f"#{number} {what}")
        if what != "all":
            contents[number] = _content(file, first, last, what, drawn)
    story = f"event {place}, {order.value}: names up to {sorted(cuts.items())}; {', '.join(told)}"
    return _state(disk, place, order, cuts, contents, story)


def _journal(disk: Disk, number: int) -> int:
    return disk.filesystem.get(number, 0)


def _cuts(
    disk: Disk, place: int, order: Order, drawn: random.Random | None, *, least: bool
) -> dict[int, int]:
    """Return up to which event names are kept: by filesystem, or by folder."""
    if order is Order.JOURNAL:
        journals = set(disk.filesystem.values())
        floors = {each: disk.floor(each, place) for each in journals}
    else:
        floors = {each: disk.folder_floor(each, place) for each in disk.folders}
    if drawn is None:
        return dict.fromkeys(floors, place)
    if least:
        return floors
    return {each: drawn.randint(floor, place) for each, floor in floors.items()}


def _state(
    disk: Disk,
    place: int,
    order: Order,
    cuts: dict[int, int],
    contents: dict[int, Content],
    story: str,
) -> State:
    by_folder = cuts | {0: place}  # what only holds the filesystems
    if order is Order.JOURNAL:
        by_folder = {each: cuts.get(_journal(disk, each), place) for each in disk.folders}
        by_folder[0] = place
    names = disk.names(by_folder, place)
    return State(disk, place, names, contents, story)


def _content(file: File, first: int, last: int, what: str, drawn: random.Random) -> Content:
    """Return what is left of a file: *first* is safe, *last* was written."""
    versions = file.contents
    if what == "lost":
        return versions[first]
    if what == "one before":
        return versions[drawn.randint(first, last)]
    # A file that was made smaller has nothing of what it had before.
    shrinks = file.shrinks_between(first, last)
    if what == "size only":
        base = versions[max([first, *shrinks])]
        size = versions[last].size
        return Content(size, {at: page for at, page in base.pages.items() if at * PAGE < size})
    sized = drawn.randint(first, last)
    begin = max([first, *(each for each in shrinks if each <= sized)])
    end = min([last, *(each - 1 for each in shrinks if each > sized)])
    numbers = {at for each in versions[begin : end + 1] for at in each.pages}
    pages = {}
    for at in numbers:
        page = _torn(versions, at, begin, end, drawn)
        if any(page):
            pages[at] = page
    size = versions[sized].size
    if drawn.random() < 0.3:  # it grows as its pages are written
        pages_at = range(-(-versions[first].size // PAGE), size // PAGE + 1)
        size = drawn.choice(pages_at) * PAGE if pages_at else size
    return Content(size, pages)


def _torn(versions: list[Content], at: int, begin: int, end: int, drawn: random.Random) -> bytes:
    first = versions[drawn.randint(begin, end)].pages.get(at, ZERO_PAGE)
    if drawn.random() < 0.7:
        return first
    second = versions[drawn.randint(begin, end)].pages.get(at, ZERO_PAGE)
    cut = SECTOR * drawn.randrange(1, PAGE // SECTOR)
    return first[:cut] + second[cut:]
