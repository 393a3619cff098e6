"""Checks that a router is opened in a task of Trio. Elsewhere its first wait would fail with a misleading error."""

from __future__ import annotations

import sys

import trio

from router_trio.errors import TrioRequiredError

_ON_ASYNCIO = "open it with `async with router_trio.aio.open(router)`: docs/how-to/asyncio.md shows how"
_ELSEWHERE = "run the program with trio.run(main)"


def require_trio() -> None:
    """Return if called from a task of Trio. Otherwise raise `TrioRequiredError`, which explains what to do."""
    if not trio.lowlevel.in_trio_task():
        place, cure = ("asyncio", _ON_ASYNCIO) if _in_asyncio() else ("no task of Trio", _ELSEWHERE)
        raise TrioRequiredError(f"router_trio runs on Trio, and this is {place}; {cure}")


def _in_asyncio() -> bool:
    # A program that runs asyncio has imported it.
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
