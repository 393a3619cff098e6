"""Count the routes that a message has passed, in a header, for routes that have a `hop_limit`.

A message that circles among routers passes the same routes again and again. A single router can't see that circle, so
only the message itself can show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from router_trio.errors import LoopError
from router_trio.protocol import headers

NAME: Final = "Router-Hops"
"""The header with the number of routes with a limit that a message has passed."""

_NAME = NAME.encode()
_LINES = headers.lines_of([NAME])


def count(block: bytes) -> int:
    """Return the number of routes that a message with these headers has passed; 0 if there is no valid number."""
    found = _LINES.search(block)
    if found is None:
        return 0
    value = found[0].partition(b":")[2].strip()
    return int(value) if value.isdigit() and len(value) < 10 else 0


def next_count(facts: Any) -> str:
    """Return the header's value for the copies of a message."""
    return str(count(facts.header_block) + 1)


def carried(block: bytes, origin: bytes) -> bytes:
    """Return the headers of a message that a handler returned, with the count of the message passed to the handler."""
    if _LINES.search(block) is not None:
        block = headers.removed(block, _LINES)
    passed = count(origin)
    return headers.replace(block, _NAME, b"%d" % passed) if passed else block


def check(limit: int, block: bytes) -> None:
    """Raise `LoopError` for a message that has passed `limit` routes or more."""
    passed = count(block)
    if passed >= limit:
        raise LoopError(
            f"the message has passed {passed} routes, and hop_limit is {limit}: does it go round in a circle?"
        )


def checked(limit: int, when: Callable[[Any], Any] | None) -> Callable[[Any], bool]:
    """Return the `when` of a route with a limit. It raises `LoopError` for a message that the route would accept."""

    def takes(facts: Any) -> bool:
        if when is not None and not when(facts):
            return False
        check(limit, facts.header_block)
        return True

    return takes
