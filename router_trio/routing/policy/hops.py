"""Count the routes that a message has passed, in a header that travels with it, and end it at the limit.

A message in a circle passes the same routes again and again. Where the circle leads over other routers, servers that
copy streams or programs, no router can see it: only the message itself can show it.

A header on each message would be a large part of the cost of a plain core message, and change every copy. So only one
message in `EVERY` begins to be counted, or while they come one at a time, one in `EVERY / (A_READ + 1)`. What has a
count keeps it, so a message that circulates is counted in one of its rounds, and ends `limit` routes later. Once a
message returns to a route that it has passed, this route counts every message, so that a circle that multiplies
messages does not outgrow the counted ones.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, final

from router_trio.errors import LoopError, PublishError, reasons
from router_trio.protocol import headers

NAME: Final = "Router-Hops"
"""The header with the number of routes that a message has passed."""

PASSED: Final = "Router-Passed"
"""The header with the names of the last routes, from the third on: a message that few routes pass does not have it."""

NAMES: Final = (NAME, PASSED)

DEFAULT_LIMIT: Final = 16
"""Routes that a message may pass by default.

No path of messages that we know of has half as many, and a circle in which each round doubles a message still ends
with thousands of copies.
"""

MOST_PASSED: Final = 16
"""Maximum number of routes that `PASSED` names."""

UNNAMED: Final = 2
"""Routes that a message passes before it has `PASSED`."""

EVERY: Final = 128
"""Messages between two that begin to be counted, at most."""

A_READ: Final = 7
"""Messages that cost as much as to receive some: with few at a time, counting one more often is no larger part."""

NEVER: Final = -(2**62)

FIRST: Final = b"Router-Hops: 1\r\n"
"""The line of a message that has passed one route."""

_LINES = headers.lines_of(NAMES)
_HOPS = headers.lines_of([NAME])
_PASSED = headers.lines_of([PASSED])


def count(block: bytes) -> int:
    """Return the number of routes that a message with these headers has passed; 0 if there is no valid number."""
    value = _value(block, _HOPS)
    return int(value) if value.isdigit() and len(value) < 10 else 0


def _value(block: bytes, lines: Any) -> bytes:
    found = lines.search(block)
    return b"" if found is None else found[0].partition(b":")[2].strip()


def is_counted(block: bytes) -> bool:
    """Return True if a header block has a count, valid or not."""
    return _LINES.search(block) is not None


def without(block: bytes) -> bytes:
    """Return a header block without the count and the names of routes."""
    return block if _LINES.search(block) is None else headers.removed(block, _LINES)


def check(limit: int, block: bytes) -> None:
    """Raise `LoopError` for a message that has passed `limit` routes or more."""
    if (passed := count(block)) >= limit:
        raise LoopError(_too_many(passed, limit))


def _too_many(passed: int, limit: int) -> str:
    return f"the message has passed {passed} routes, and hop_limit is {limit}: does it go round in a circle?"


def checked(limit: int, when: Callable[[Any], Any] | None) -> Callable[[Any], bool]:
    """Return the `when` of a route with a limit. It raises `LoopError` for a message that the route would accept."""

    def takes(facts: Any) -> bool:
        if when is not None and not when(facts):
            return False
        check(limit, facts.header_block)
        return True

    return takes


def name_of(route: Iterable[str]) -> bytes:
    """Return the name by which messages remember a route, made of texts that identify it: the same in all processes."""
    digest = blake2b("\0".join(route).encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return urlsafe_b64encode(digest)


@final
class Sample:
    """Chooses the messages that begin to be counted, of all that are sent together."""

    __slots__ = ("_turn", "uncounted")

    def __init__(self) -> None:
        self.uncounted: int = 0
        """Messages since the last chosen one, and `A_READ` for each time. Callers add to it."""
        self._turn = 0

    def is_due(self) -> bool:
        """Return True if a message should begin to be counted, once."""
        due = self.uncounted >= EVERY
        if due:
            self.uncounted = 0
        return due

    def choose(self, messages: int) -> int:
        """Return the place of one of these messages, at least one.

        It is another one each time, so that none of a pattern is left out.
        """
        self._turn += 1
        return self._turn % messages


@final
class Hops:
    """Counts the messages that a route sends to one destination.

    `limit` is the maximum number of routes that a message may have passed, `name` that of the route. With `each`, every
    message is counted.
    """

    __slots__ = ("_returned", "each", "limit", "name", "sample")

    def __init__(self, limit: int, name: bytes, *, each: bool = False) -> None:
        self.limit: int = limit
        self.name: bytes = name
        self.each: bool = each
        """True if every message is counted: that is configured, or one has returned."""
        self.sample: Sample = Sample()
        """Chooses the messages that begin to be counted."""
        self._returned: tuple[Callable[[], None], ...] = ()

    def when_returned(self, call: Callable[[], None]) -> None:
        """Call `call` for each message that is seen to have passed this route before."""
        self._returned += (call,)

    def lines(self, block: bytes) -> bytes:
        """Return the header lines of a copy of a message with these headers; `b""` if that has no count.

        Raises `PublishError` (`loop`) if the message has passed too many routes.
        """
        if _LINES.search(block) is None:
            return b""
        passed = count(block)
        if passed >= self.limit:
            self._look_back(block)
            raise PublishError(_too_many(passed, self.limit), reason=reasons.LOOP)
        if passed < UNNAMED:
            return b"%b: %d\r\n" % (NAME.encode(), passed + 1)
        before = self._look_back(block)
        names = b" ".join([*before[1 - MOST_PASSED :], self.name])
        return b"%b: %d\r\n%b: %b\r\n" % (NAME.encode(), passed + 1, PASSED.encode(), names)

    def _look_back(self, block: bytes) -> list[bytes]:
        """Return the names of the routes that a message has passed. If one is this route, count all from now on."""
        before = headers.one_line(_value(block, _PASSED)).split()[-MOST_PASSED:]
        before = [one for one in before if len(one) == len(self.name)]
        if self.name in before:
            self.each = True
            for call in self._returned:
                call()
        return before

    def begin_none(self) -> None:
        """Let no message begin to be counted unless each does, for copies that are compared with others."""
        self.sample.uncounted = NEVER

    def begins(self, messages: int = 1) -> bool:
        """Return True if messages that are sent together, or one of them, should begin to be counted."""
        self.sample.uncounted += messages + A_READ
        return self.each or self.sample.is_due()

    def chosen(self, messages: int) -> Sequence[int]:
        """Return which of messages that are sent together begin to be counted, at most one unless each does."""
        if not self.begins(messages):
            return ()
        return range(messages) if self.each else (self.sample.choose(messages),)


def with_lines(block: bytes, lines: bytes) -> bytes:
    """Return a header block with further lines at its end."""
    if block.endswith(headers.END):
        return block[:-2] + lines + b"\r\n"
    # A server also relays a block without an end of its last line.
    return b"%b\r\n%b\r\n" % (block.rstrip(b"\r\n") or headers.VERSION, lines)
