"""One operation over several places: which is asked, how often, and when the next one is asked.

A place is asked again while the error may be temporary and its time limit has not passed.  Only
the last place has a long limit: before that, another place is more likely to answer.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from lazyfs.digest import Digest
from lazyfs.errors import LazyfsError, UsageError
from lazyfs.printable import printable
from lazyfs.registry.config.endpoints import BadEndpoint
from lazyfs.registry.config.errors import ConnectionTrouble, Slow, TlsRefused, redact_url
from lazyfs.registry.place import Place
from lazyfs.registry.retry import Patience, RetryPolicy
from lazyfs.registry.source import SourceStatistics

log = logging.getLogger(__name__)

T = TypeVar("T")

HURRIED = RetryPolicy(tries=2, patience_seconds=5.0, obeyed_seconds=2.0)
"""The bounds of the policy for places that are not the last one."""

SHOWN_REASON = 200


class Route:
    """The places for one operation, best first; ``place`` is the one whose turn it is.

    *subject* is the digest that is asked for, None for a tag.
    """

    def __init__(
        self,
        places: Sequence[Place],
        subject: Digest | None,
        policy: RetryPolicy,
        statistics: SourceStatistics,
    ) -> None:
        if not places:
            raise BadEndpoint("no configured endpoint may be asked for this")
        # Sorting is stable: where nothing is wrong the order stays as configured.
        self._places = sorted(places, key=lambda place: place.rank(subject))
        self._subject = subject
        self._policy = policy
        self._statistics = statistics
        self._errors: list[tuple[Place, LazyfsError]] = []
        self._begin()

    def _begin(self) -> None:
        self.place = self._places[len(self._errors)]
        self._asked = self.place.endpoint.url
        is_last = len(self._errors) == len(self._places) - 1
        self._patience = Patience(
            self._policy if is_last else hurried(self._policy), self._statistics
        )

    async def bear(self, error: LazyfsError) -> None:
        """Get ready for the next try, here or at the next place; raise when none is left."""
        if isinstance(error, UsageError):
            raise error  # what is configured is wrong: nobody else can help
        if self.place.change_scheme(error, self._asked):
            self._asked = self.place.endpoint.url
            return
        is_last = len(self._errors) == len(self._places) - 1
        # Who is slow has had its time already, and another one may be fast.
        if (is_last or not isinstance(error, Slow)) and await self._patience.endure(error):
            return
        self.place.fail(error, self._subject)
        self._errors.append((self.place, error))
        if len(self._errors) == len(self._places):
            self._statistics.errors += 1
            raise verdict(self._errors)
        self._begin()
        log.info("%s; continuing with %s", error.message, redact_url(self.place.endpoint.url))

    def renew(self) -> None:
        """Something came of the last try: start counting again."""
        self._patience.renew()


def hurried(policy: RetryPolicy) -> RetryPolicy:
    """Return *policy* for a place after which there is another one."""
    return replace(
        policy,
        tries=min(policy.tries, HURRIED.tries),
        patience_seconds=min(policy.patience_seconds, HURRIED.patience_seconds),
        obeyed_seconds=min(policy.obeyed_seconds, HURRIED.obeyed_seconds),
    )


def verdict(errors: Sequence[tuple[Place, LazyfsError]]) -> LazyfsError:
    """Return the error that says most: the origin's, rather an answer than none; name the rest."""
    if len(errors) == 1:
        return errors[0][1]

    def weight(entry: tuple[Place, LazyfsError]) -> tuple[bool, bool]:
        place, error = entry
        return place.endpoint.is_origin, not isinstance(error, ConnectionTrouble | TlsRefused)

    chosen = max(errors, key=weight)
    others = "; ".join(
        printable(entry[1].message, SHOWN_REASON) for entry in errors if entry is not chosen
    )
    error = chosen[1]
    return type(error)(f"{error.message}; before that: {others}", hint=error.hint)


async def try_places(attempt: Callable[[Place], Awaitable[T]], route: Route) -> T:
    """Return what *attempt* returns, calling it again, here and there, while that may help."""
    while True:
        place = route.place
        try:
            result = await attempt(place)
        except LazyfsError as error:
            await route.bear(error)
        else:
            place.succeed()
            return result
