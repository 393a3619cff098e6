"""Call async functions on an asyncio loop from Trio. The loop may run in another thread.

Waking up the other side costs more than a call does. So the calls that begin in one turn of Trio's loop cross together,
with one wake-up, and so do the answers of one turn of the asyncio loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

if TYPE_CHECKING:
    import asyncio

ENDS_WITHIN = 0.5
"""Seconds that a cancelled call may take to end. Less than the time that a reload waits for a route to end."""

TOGETHER = 8
"""Calls that cross together at most. More of them would begin later: calls that wait 10 ms then have four fifths
of their rate."""

CALLER: ContextVar[AsyncioCalls] = ContextVar("router_trio.asyncio_calls")
"""Set in the context of each call. Every task that the call creates has a copy of that context."""


class AsyncioCalls:
    """The calls on one asyncio loop. Methods are for Trio's thread, except those whose names end in `on_loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._token = trio.lowlevel.current_trio_token()
        self._context = copy_context()
        """The context in which the loop is asked to begin calls: several begin together, each in its own."""
        self._to_begin: deque[_Call] = deque()
        self._over: deque[_Call] = deque()
        # A flag is set by the side that appends to a queue, after that, and reset by the other side before it looks
        # into the queue. So a call that is appended meanwhile is either seen, or wakes up the other side once more.
        self._begins_soon = False
        self._wakes_soon = False
        self._under_way = 0
        self._crosser: trio.lowlevel.Task | None = None
        """The task that waits in `cross_together`."""
        self._crosses_soon = False
        """True if that task was woken up."""

    async def cross_together(self) -> None:
        """Let the calls that begin in one turn of Trio's loop cross together, until cancelled.

        Without this task each crosses at once: waking up the other thread releases the interpreter lock, and that
        thread then begins the only call that it finds.
        """
        while True:
            self._crosser = current_task()
            await wait_task_rescheduled(self._stop_crossing)
            self._crosses_soon = False
            if self._to_begin:
                with suppress(RuntimeError):  # the loop has failed, and who opened it notices
                    self._cross()

    def _stop_crossing(self, raise_cancel: Any) -> Abort:
        self._crosser = None
        return Abort.SUCCEEDED

    def _cross(self) -> None:
        """Let the loop begin the calls. Raises `RuntimeError` if it is closed, at each call."""
        self._begins_soon = True
        try:
            self.loop.call_soon_threadsafe(self._begin_on_loop, context=self._context)
        except RuntimeError:
            self._begins_soon = False
            raise

    async def call(
        self, function: Callable[..., Awaitable[Any]], *arguments: object, left_behind: set[object] | None = None
    ) -> Any:
        """Call an async function in a task of the loop, in a copy of this context. Returns and raises what it does.

        If cancelled, cancels that task and waits until it has ended, for `ENDS_WITHIN` at most. A call that has not
        ended by then is in `left_behind` until it does. Raises `RuntimeError` if the loop is closed.
        """
        one = _Call(function, arguments, self)
        self._to_begin.append(one)
        if self._crosses_soon:
            if len(self._to_begin) >= TOGETHER:
                self._cross()
        elif not self._begins_soon:
            if self._crosser is None or not self._under_way:
                self._cross()  # a lone call need not wait for others
            else:
                reschedule(self._crosser)
                self._crosser, self._crosses_soon = None, True
        self._under_way += 1
        try:
            await one.wait()
        except BaseException:
            await self._cancel(one, left_behind)
            raise
        if one.error is None:
            return one.answer
        error, one.error = one.error, None
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    async def _cancel(self, one: _Call, left_behind: set[object] | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, and the cancellation must not be replaced by that
            self._cross()  # it may have begun in this turn
            self.loop.call_soon_threadsafe(self._cancel_on_loop, one)
        if not one.is_over:
            with trio.move_on_after(ENDS_WITHIN, shield=True):
                await one.wait()
        if not one.is_over and left_behind is not None:
            one.left_behind = left_behind
            left_behind.add(one)

    def _wake(self) -> None:
        self._wakes_soon = False
        over = self._over
        while over:
            one = over.popleft()
            one.is_over = True
            self._under_way -= 1
            if one.waiting is not None:
                reschedule(one.waiting)
                one.waiting = None
            elif one.left_behind is not None:
                one.left_behind.discard(one)

    # --- on the loop ---

    def _begin_on_loop(self) -> None:
        self._begins_soon = False
        to_begin, begins = self._to_begin, []
        while to_begin:
            one = to_begin.popleft()
            running = self._run_on_loop(one)
            try:
                one.task = self.loop.create_task(running, context=one.context)
            except BaseException as error:  # of a task factory that a handler has set
                running.close()
                self._fail_on_loop(one, error)
            else:
                begins.append(one)
        if begins:
            self.loop.call_soon(self._begun_on_loop, begins)

    async def _run_on_loop(self, one: _Call) -> None:
        one.has_begun = True
        try:
            one.answer = await one.function(*one.arguments)
        except BaseException as error:  # also if the task is discarded
            one.error = error
        self._report_on_loop(one)

    def _begun_on_loop(self, begins: Sequence[_Call]) -> None:
        """Watch over the calls whose tasks have not begun in their turn: if cancelled, they end without beginning."""
        for one in begins:
            if not one.has_begun and one.task is not None:
                one.task.add_done_callback(partial(self._ended_on_loop, one))

    def _ended_on_loop(self, one: _Call, task: asyncio.Task[None]) -> None:
        if not one.has_begun:
            try:
                task.result()
            except BaseException as error:
                self._fail_on_loop(one, error)

    def _fail_on_loop(self, one: _Call, error: BaseException) -> None:
        one.has_begun = True
        one.error = error
        self._report_on_loop(one)

    def _cancel_on_loop(self, one: _Call) -> None:
        if one.task is not None:  # else it could not be created
            one.task.cancel()

    def _report_on_loop(self, one: _Call) -> None:
        self._over.append(one)
        if not self._wakes_soon:
            self._wakes_soon = True
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake)

    def is_call(self, task: asyncio.Task[Any]) -> bool:
        """Return True if a task of the loop is one of these calls. May be called on the loop."""
        return getattr(task.get_coro(), "cr_code", None) is AsyncioCalls._run_on_loop.__code__


class _Call:
    """A call. `waiting` is the Trio task that waits for it."""

    __slots__ = (
        "answer",
        "arguments",
        "context",
        "error",
        "function",
        "has_begun",
        "is_over",
        "left_behind",
        "task",
        "waiting",
    )

    def __init__(
        self, function: Callable[..., Awaitable[Any]], arguments: tuple[object, ...], caller: AsyncioCalls
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.context: Context = copy_context()
        self.context.run(CALLER.set, caller)
        self.task: asyncio.Task[None] | None = None
        self.has_begun = False
        self.answer: Any = None
        self.error: BaseException | None = None
        self.is_over = False
        self.waiting: trio.lowlevel.Task | None = None
        self.left_behind: set[object] | None = None

    async def wait(self) -> None:
        """Wait until the call is over."""
        self.waiting = current_task()
        await wait_task_rescheduled(self._stop_waiting)

    def _stop_waiting(self, raise_cancel: Any) -> Abort:
        self.waiting = None
        return Abort.SUCCEEDED
