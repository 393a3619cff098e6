"""Checks that a router is opened in a task of Trio. Elsewhere its first wait would fail with a misleading error."""

from __future__ import annotations

import sys

import trio

from router_trio.errors import TrioRequiredError

_CURE = "run the program with trio.run(main), or this part of it in a thread: docs/how-to/asyncio.md shows how"


def require_trio() -> None:
    """Return if called from a task of Trio. Otherwise raise `TrioRequiredError`, which explains what to do."""
    if not trio.lowlevel.in_trio_task():
        raise TrioRequiredError(f"router_trio runs on Trio, and this is {_surroundings()}; {_CURE}")


def _surroundings() -> str:
    # A program that runs asyncio has imported it.
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            return "asyncio"
    return "no task of Trio"
