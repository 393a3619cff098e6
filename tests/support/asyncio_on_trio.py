"""asyncio loops on Trio, on the clock of a test, by trio-asyncio without its changes to asyncio.

Importing trio-asyncio changes asyncio for the entire process: the event loop policy, and the functions that find and
create loops. A program's own `asyncio.run`, in any thread, would then run on something else. So all of that is restored
right after the import. The purpose of those changes, that code in such a loop finds the running loop, is achieved in
asyncio's own way: the loop is the running loop of its thread while one of its callbacks runs.

A program that has imported trio-asyncio before wants the changed asyncio. Then nothing is restored or changed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any


def _import_without_traces() -> Any:
    if "trio_asyncio" in sys.modules:
        import trio_asyncio

        return trio_asyncio
    modules = (asyncio, asyncio.events, asyncio.tasks)
    before = [dict(vars(module)) for module in modules]
    import trio_asyncio

    for module, names in zip(modules, before, strict=True):
        for name, value in names.items():
            if vars(module)[name] is not value:
                setattr(module, name, value)
    trio_asyncio._loop.TrioEventLoop = _running_loop(trio_asyncio)
    return trio_asyncio


def _running_loop(trio_asyncio: Any) -> type:
    class RunningLoop(trio_asyncio.TrioEventLoop):  # type: ignore[misc]
        """A loop that is the thread's running loop while one of its callbacks runs."""

        def _queue_handle(self, handle: Any) -> Any:
            # An AsyncHandle runs a Trio function, which needs no running loop.
            if not isinstance(handle, trio_asyncio._handles.AsyncHandle) and not handle.cancelled():
                handle._args = (handle._callback, *handle._args)
                handle._callback = self._as_running
            return super()._queue_handle(handle)

        def _as_running(self, callback: Callable[..., object], *arguments: object) -> None:
            outer = asyncio._get_running_loop()
            asyncio._set_running_loop(self)
            try:
                callback(*arguments)
            finally:
                asyncio._set_running_loop(outer)

    return RunningLoop


_trio_asyncio = _import_without_traces()

open_loop = _trio_asyncio.open_loop
"""Opens an asyncio loop on Trio: `trio_asyncio.open_loop`."""
