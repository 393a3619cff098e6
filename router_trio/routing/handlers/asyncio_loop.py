"""The asyncio loop on which handlers run: opened for the first call, and closed when the router has ended.

A pool that a handler or the lifespan opens is bound to its loop, so there is one loop, for all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

import trio

from router_trio.connection.platform import OpenLoop
from router_trio.message import Message
from router_trio.routing.handlers.answers import answers_of
from router_trio.routing.handlers.asyncio_calls import CALLER, AsyncioCalls
from router_trio.routing.handlers.calls import Handler
from router_trio.routing.handlers.tracebacks import place_in

if TYPE_CHECKING:
    import asyncio

Watching = Callable[["asyncio.AbstractEventLoop"], AbstractAsyncContextManager[Any]]
"""Returns a context in which a loop is watched."""

TASKS_END_WITHIN = 1.0
"""Seconds that tasks which handlers have left behind may take to end once they are cancelled."""


class AsyncioLoop:
    """The asyncio loop of the handlers of one router, while `lasting` is entered."""

    def __init__(self, open_loop: OpenLoop | None, *, is_shared: bool = False) -> None:
        """`open_loop` opens the loop; None opens one in a thread of its own. `is_shared`: see `Platform`."""
        self._open_loop: OpenLoop = open_loop or _open_thread
        self._is_shared = is_shared
        self._left: list[str] = []
        self._nursery: trio.Nursery | None = None
        self._context: Context = copy_context()
        """The context in which the loop is opened, and not that of the call which is the first to need it."""
        self._watching: Watching = nullcontext
        self._opening: _Opening | None = None
        self._ends = trio.Event()
        self.calls: AsyncioCalls | None = None
        """None until the loop is open."""

    @asynccontextmanager
    async def lasting(
        self, left_behind: Callable[[Sequence[str]], object], watching: Watching | None = None
    ) -> AsyncIterator[None]:
        """Keep the loop open from its first use until this context is left, even if cancelled.

        At the end the tasks that handlers have left on the loop are cancelled. `left_behind` gets their places, if
        there are any. `watching` returns a context that lasts as long as the loop is open, if that has a thread of its
        own.
        """
        if watching is not None and self._open_loop is _open_thread:
            self._watching = watching
        failure: BaseException | None = None
        async with trio.open_nursery() as self._nursery:
            try:
                yield
            except BaseException as error:
                failure = error  # raised outside of the nursery, which would wrap it in a group
            self._nursery.cancel_scope.shield = True
            self._ends.set()
        if self._left:
            left_behind(self._left)
        if failure is not None:
            raise failure

    async def opened(self) -> AsyncioCalls:
        """Return the calls on the loop, and open it if it is not open yet. Raises what opening it raises."""
        while self.calls is None:
            assert self._nursery is not None, "handlers are called while `lasting` is entered"
            if self._opening is None:
                self._opening = _Opening()
                self._context.run(self._nursery.start_soon, self._keep_open, self._opening)
            opening = self._opening
            await opening.over.wait()
            if opening.error is not None:
                raise opening.error
        return self.calls

    async def _keep_open(self, opening: _Opening) -> None:
        try:
            with trio.CancelScope(shield=True):
                async with self._open_loop() as loop, self._watching(loop):
                    self.calls = AsyncioCalls(loop)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.calls.cross_together)
                        opening.over.set()
                        await self._ends.wait()
                        nursery.cancel_scope.cancel()
                    # A loop that a handler blocks answers nothing.
                    with trio.move_on_after(TASKS_END_WITHIN):
                        await self.calls.call(self._cancel_tasks_on_loop, self.calls)
        except Exception as error:
            if self.calls is not None:
                raise
            opening.error, self._opening = error, None
        finally:
            opening.over.set()

    async def _cancel_tasks_on_loop(self, calls: AsyncioCalls) -> None:
        import asyncio  # imported by now

        this = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not this and self._is_ours(task, calls)]
        left.sort(key=lambda task: (len(task.get_name()), task.get_name()))  # by age, unless they have names
        self._left = sorted(_described(task) for task in left if not calls.is_call(task))
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    def _is_ours(self, task: asyncio.Task[Any], calls: AsyncioCalls) -> bool:
        """Return True if one of these calls has created a task: a copy of the context of the call is its context.

        A loop of the program may be that of several routers.
        """
        if not self._is_shared:
            return True
        get_context: Any = getattr(task, "get_context", dict)  # since Python 3.12
        return get_context().get(CALLER) is calls


class InAsyncio:
    """An async handler that is called on an asyncio loop."""

    def __init__(self, handler: Handler, loop: AsyncioLoop) -> None:
        self.__wrapped__: Handler = handler
        self._loop = loop
        self.left_behind: set[object] = set()
        """Calls that were cancelled and have not ended."""

    async def call(self, message: Message) -> Any:
        """Call the handler in a task of the loop and wait for its answer. If cancelled, that task is cancelled."""
        calls = self._loop.calls or await self._loop.opened()
        return await calls.call(self._answer_on_loop, message, left_behind=self.left_behind)

    async def _answer_on_loop(self, message: Message) -> Any:
        answer = await self.__wrapped__(message)
        if answer is None or type(answer) is Message:
            return answer
        return answers_of(answer)  # a generator runs the handler's code, too


class _Opening:
    """An attempt to open the loop."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.error: Exception | None = None


def _described(task: asyncio.Task[Any]) -> str:
    """Return the place where a task of a handler waits, after its name if it has been given one."""
    coroutine, name = task.get_coro(), task.get_name()
    code, frame = getattr(coroutine, "cr_code", None), getattr(coroutine, "cr_frame", None)
    if code is None or frame is None:
        return name
    place = place_in([(code, frame.f_lineno)], 0)
    return place if name.startswith("Task-") else f"{name} at {place}"


def _open_thread() -> AbstractAsyncContextManager[asyncio.AbstractEventLoop]:
    """Open a loop in a thread of its own."""
    # Imported here, since a router without handlers on asyncio does not need asyncio.
    from router_trio.routing.handlers.asyncio_thread import open_in_thread

    return open_in_thread()
