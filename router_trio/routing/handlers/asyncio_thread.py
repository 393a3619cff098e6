"""An asyncio loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from router_trio.errors import RouterError
from router_trio.errors.quotes import text_of_error

THREAD = "router_trio asyncio"
"""The name of the thread."""

CLOSES_WITHIN = 1.0
"""Seconds that the loop may take to close. If a handler blocks it, the thread is left behind."""


@asynccontextmanager
async def open_in_thread() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """Run an asyncio loop in a thread while this is entered. Leaving is shielded, and bounded by `CLOSES_WITHIN`.

    If the loop itself fails, the body is cancelled and `RouterError` is raised. Its selector does if a handler closes
    descriptors that are not its own, for instance.

    Raises `RuntimeError` if the system has no thread left.
    """
    loop, closed, token = new_loop(), trio.Event(), trio.lowlevel.current_trio_token()
    scope, is_ending = trio.CancelScope(), False
    failure: BaseException | None = None

    def run() -> None:
        nonlocal failure
        try:
            while not is_ending:
                # A task that raises one of these ends the call; nothing else ends with it. So does `loop.stop()`.
                with suppress(KeyboardInterrupt, SystemExit):
                    loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as error:
            failure = error
        finally:
            with suppress(OSError):  # of a selector that has failed
                loop.close()
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ended)

    def ended() -> None:
        closed.set()
        if failure is not None:
            scope.cancel()

    def end() -> None:
        nonlocal is_ending
        is_ending = True
        loop.stop()

    try:
        # A handler that blocks the loop must not keep the process from ending.
        thread = threading.Thread(target=run, name=THREAD, daemon=True)
        thread.start()
    except RuntimeError:
        loop.close()
        raise
    try:
        with scope:
            yield loop
    finally:
        with suppress(RuntimeError):  # it has failed, and is closed
            loop.call_soon_threadsafe(end)
        with trio.move_on_after(CLOSES_WITHIN, shield=True):
            await closed.wait()
            thread.join()  # it has nothing left to do
    if failure is not None:
        raise RouterError(f"the asyncio loop of the handlers has failed: {text_of_error(failure)}") from failure


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop: of uvloop if it is installed, which takes less processor time for each call."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = new_event_loop()
    return loop
