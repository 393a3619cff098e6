"""Opens a router in a program of asyncio, and couples its end with the end of the program's body."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial

import trio

from router_trio.aio.guest import Guest, join_guest, raise_unchanged, wait_until
from router_trio.aio.live import Live
from router_trio.client.live import Live as TrioLive
from router_trio.router import Router
from router_trio.router.run import ConnectFactory


@asynccontextmanager
async def open(
    router: Router, *, connect: ConnectFactory | None = None, listen: str | None = None
) -> AsyncIterator[Live]:
    """Run a router in a program of asyncio while this context is entered, as `Router.open` does on Trio.

    Several routers may be open at a time in one loop. Handlers with `loop = "asyncio"` are called in that loop. If the
    router fails, the task that entered the context is cancelled, and leaving the context raises the router's error.
    Leaving drains within `shutdown_timeout`, also when cancelled; cancelling again cuts the drain short.

    `connect` and `listen` are those of `Router.open`.

    Raises `AsyncioRequiredError` outside of asyncio, and what `Router.open` raises. Errors of the body are raised
    unchanged.
    """
    guest = await join_guest()
    try:
        opened = _Opened(guest, partial(router.open, connect=connect, listen=listen, asyncio_loop=guest.loop))
        try:
            live = await opened.live()
            with opened.in_body():
                yield live
        except BaseException as error:
            failure = await opened.leave(error)
            if failure is None:
                raise
        else:
            failure = await opened.leave(None)
        if failure is not None:
            raise_unchanged(failure)
    finally:
        await guest.leave()


class _Opened:
    """A router that a call in the guest opens, and closes when the program leaves."""

    def __init__(self, guest: Guest, open_router: Callable[[], AbstractAsyncContextManager[TrioLive]]) -> None:
        self._guest = guest
        self._open_router = open_router
        self._leaves = trio.Event()
        self._tried = asyncio.Event()
        self._live: Live | None = None
        self._body: asyncio.Task[object] | None = None
        self._cancelled: asyncio.Task[object] | None = None
        self._interruption: KeyboardInterrupt | None = None
        self._call = guest.call(self._run, self._has_ended)
        guest.users.add(self)

    async def live(self) -> Live:
        """Wait until the router is open. If cancelled, end it. Raises what `Router.open` raises."""
        await wait_until(self._tried, self._call.cancel)
        if self._live is None:
            # The error is raised when the router is left.
            raise asyncio.CancelledError
        return self._live

    @contextmanager
    def in_body(self) -> Iterator[None]:
        """Cancel the current task when the router fails while this context is entered."""
        self._body = asyncio.current_task()
        try:
            yield
        finally:
            self._body = None

    async def leave(self, error: BaseException | None) -> BaseException | None:
        """Drain the router, and wait for its end. Returns the error to raise in place of the body's, if there is one.

        If cancelled, cut the drain short.
        """
        if not self._call.is_over:
            self._leaves.set()
        if self._cancelled is not None:
            await _uncancel(self._cancelled, isinstance(error, asyncio.CancelledError))
        try:
            with nullcontext() if error is None else _shield_from_anyio():
                await self._call.over()
        except asyncio.CancelledError as cancelled:
            if self._failure(cancelled) is None:
                raise
            error = cancelled
        finally:
            self._guest.users.discard(self)
        return self._failure(error)

    def _failure(self, error: BaseException | None) -> BaseException | None:
        if self._interruption is not None:
            return self._interruption
        return self._call.error if error is None or isinstance(error, asyncio.CancelledError) else None

    def interrupt(self, error: KeyboardInterrupt) -> None:
        """Cancel the body, the start or the drain, and let `leave` return the error."""
        self._interruption = error
        if self._body is None:
            self._call.cancel()
        else:
            self._cancel_body()

    async def _run(self) -> None:
        """Run the router as a task of Trio."""
        async with self._open_router() as live:
            self._live = Live(live, self._guest)
            self._tried.set()
            await self._leaves.wait()

    def _has_ended(self) -> None:
        self._tried.set()
        if self._live is not None:
            self._live.end()
        if self._call.error is not None:
            self._cancel_body()

    def _cancel_body(self) -> None:
        # The context may have been entered in a task that has ended: a fixture of pytest-asyncio has one for each half.
        if self._cancelled is None and self._body is not None and not self._body.done():
            self._cancelled = self._body
            self._body.cancel()


def _shield_from_anyio() -> AbstractContextManager[object]:
    """Shield from a cancelled scope of AnyIO, which cancels a task again and again: once is not meant to be twice."""
    anyio = sys.modules.get("anyio")
    scope: AbstractContextManager[object] = nullcontext() if anyio is None else anyio.CancelScope(shield=True)
    return scope


async def _uncancel(task: asyncio.Task[object], arrived: bool) -> None:
    """Take back our cancellation of a task, in which another error is raised instead."""
    task.uncancel()
    if not arrived and asyncio.current_task() is task:
        # The body has suppressed it, or has not waited since: then it would arrive at the next wait of the program.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
