"""Where a router may be opened: in a task of Trio. Elsewhere its first wait would fail, in words that mislead."""

from __future__ import annotations

import sys

import trio

from router_trio.errors import TrioRequiredError

_CURE = "run the program with trio.run(main), or this part of it in a thread: docs/how-to/asyncio.md shows how"


def require_trio() -> None:
    """Return if a task of Trio calls. Raise `TrioRequiredError`, which says what does and what to do, if not."""
    if not trio.lowlevel.in_trio_task():
        raise TrioRequiredError(f"router_trio runs on Trio, and this is {_surroundings()}; {_CURE}")


def _surroundings() -> str:
    # Whoever runs asyncio has imported it.
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            return "asyncio"
    return "no task of Trio"
