"""Trio as the guest of an asyncio loop, in one thread: `trio.lowlevel.start_guest_run`.

A thread has at most one guest, which all its routers share. Trio's tasks take a turn as a callback of the loop, and the
loop's own tasks run between two turns. So code on either side may call synchronous functions of the other one, and only
waiting needs a `Call`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import trio

from router_trio.aio.idle import Idle, Turn
from router_trio.errors import AsyncioRequiredError

T = TypeVar("T")


class Call(Generic[T]):
    """A Trio function that runs in a guest while a task of asyncio waits for it."""

    def __init__(self, function: Callable[[], Awaitable[T]], when_over: Callable[[Call[Any]], object]) -> None:
        """`when_over` is called at the end, with this call."""
        self._function = function
        self._when_over = when_over
        self._scope = trio.CancelScope()
        self._values: list[T] = []
        self._over = asyncio.Event()
        self.error: BaseException | None = None
        """The error that the function has raised."""

    async def run(self) -> None:
        """Call the function. Runs as a task of Trio, and never raises."""
        try:
            with self._scope:
                self._values.append(await self._function())
        except BaseException as error:
            self.error = error
        self._over.set()
        self.notify()

    def notify(self) -> None:
        """Call `when_over`."""
        self._when_over(self)

    @property
    def is_over(self) -> bool:
        """True if the function has ended, or will never continue."""
        return self._over.is_set()

    def cancel(self) -> None:
        """Cancel the function."""
        if not self.is_over:
            self._scope.cancel()

    def lose(self, error: BaseException) -> None:
        """End with this error, because the guest has failed and the function will never continue."""
        self.error = error
        self._over.set()

    async def over(self) -> None:
        """Wait until the function has ended. If cancelled, cancel it, wait for its end, and raise `CancelledError`."""
        await wait_until(self._over, self.cancel)

    async def result(self, otherwise: Callable[[], BaseException]) -> T:
        """Wait as `over` does, and return what the function returns, or raise what it raises.

        Raises what `otherwise` returns if the function was cancelled, and not because this wait was.
        """
        cancelled: BaseException | None = None
        try:
            await self.over()
        except asyncio.CancelledError as error:
            cancelled = error
        raised = self.error or cancelled
        if raised is not None or not self._values:
            raise_unchanged(raised or otherwise())
        return self._values[0]


class Interruptible(Protocol):
    """Is notified of a Ctrl-C that Trio has received in place of the program."""

    def interrupt(self, error: KeyboardInterrupt) -> None:
        """End because of this error."""


class Guest:
    """A run of Trio in the thread of an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ended: asyncio.Event = asyncio.Event()
        """Set when Trio has ended, or failed."""
        self.users: set[Interruptible] = set()
        self.waited_for: set[asyncio.Event] = set()
        """Events that Trio sets. If it fails they are set as well, since it never will."""
        self._joined = 0
        self._calls: set[Call[Any]] = set()
        self._nursery: trio.Nursery | None = None
        self._began = asyncio.Event()
        self._ends = trio.Event()
        self._idle = Idle(loop, self._turn)
        self._has_turned = False

    def begin(self) -> None:
        """Start Trio."""
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._soon_from_thread,
            run_sync_soon_not_threadsafe=self._soon,
            done_callback=self._done,
            host_uses_signal_set_wakeup_fd=True,
            # A Ctrl-C is for the program, and must not end a task of the router that happens to have its turn.
            restrict_keyboard_interrupt_to_checkpoints=True,
            clock=self._idle,
        )

    @property
    def ends(self) -> bool:
        """True if the last router has left, and none can join any more."""
        return self._ends.is_set()

    async def join(self) -> None:
        """Wait until Trio runs, and keep it running until `leave`, also if this raises."""
        self._joined += 1
        await self._began.wait()

    async def leave(self) -> None:
        """Let Trio end if no other router has joined, and wait for that, even if cancelled."""
        self._joined -= 1
        if not self._joined and not self.ended.is_set():
            self._ends.set()
            await wait_until(self.ended)

    def call(self, function: Callable[[], Awaitable[T]], when_over: Callable[[], object] = lambda: None) -> Call[T]:
        """Start a Trio function. `when_over` is called in Trio's turn, when it has ended."""

        def forget(call: Call[Any]) -> None:
            self._calls.discard(call)
            when_over()

        call = Call(function, forget)
        self._calls.add(call)
        assert self._nursery is not None, "a call is made after `join`"
        self._nursery.start_soon(call.run, name=function)
        return call

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._began.set()
            while not self._ends.is_set():
                try:
                    await self._ends.wait()
                except KeyboardInterrupt as error:
                    # Only if neither asyncio nor the program handles SIGINT, and Trio did in one of its turns.
                    for user in tuple(self.users):
                        user.interrupt(error)
        self._idle.close()  # before Trio closes its selector

    def _soon(self, turn: Turn) -> None:
        if not self._has_turned:
            self._has_turned = True
            self._idle.watch(turn)
        if not self._idle.keep(turn):
            self.loop.call_soon(self._turn, turn)

    def _soon_from_thread(self, turn: Turn) -> None:
        try:
            self.loop.call_soon_threadsafe(self._turn, turn)
        except RuntimeError:
            # The loop was closed before the routers had ended: no task is left to notify.
            if not self.loop.is_closed():
                raise

    def _turn(self, turn: Turn) -> None:
        try:
            turn()
        except BaseException as error:
            # A second Ctrl-C, for instance. Without this turn there will be no other one.
            self._failed(error)
            raise

    def _done(self, outcome: Any) -> None:
        error = getattr(outcome, "error", None)
        if error is None:
            self._over()
        else:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._idle.close()
        lost = tuple(self._calls)
        for call in lost:
            call.lose(error)
        self._over()
        for call in lost:
            call.notify()
        for event in self.waited_for:
            event.set()

    def _over(self) -> None:
        self._began.set()
        self.ended.set()
        _thread.guest = None


class _Thread(threading.local):
    guest: Guest | None = None


_thread = _Thread()


async def join_guest() -> Guest:
    """Return the guest of the running asyncio loop, which runs until `Guest.leave`. Start Trio if there is none.

    Raises `AsyncioRequiredError` if no loop runs, or if Trio runs in this thread already and is not its guest.
    """
    # No context of an asynchronous generator: when a loop closes those that are left, it closes all at the same time.
    guest = await _guest()
    try:
        await guest.join()
    except BaseException:
        await guest.leave()
        raise
    return guest


async def _guest() -> Guest:
    if trio.lowlevel.in_trio_task():
        raise AsyncioRequiredError("aio.open is for programs of asyncio, and this is a task of Trio; use router.open()")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise AsyncioRequiredError("aio.open is for programs of asyncio, and no event loop of asyncio runs") from None
    while (guest := _thread.guest) is not None and guest.loop is loop:
        if not guest.ends:
            return guest
        await guest.ended.wait()
    if trio.lowlevel.in_trio_run():
        other = "the guest of another asyncio loop, which ended before its routers did" if guest else "not its guest"
        raise AsyncioRequiredError(f"Trio runs in the thread of this asyncio loop already, and is {other}")
    guest = Guest(loop)
    guest.begin()
    _thread.guest = guest
    return guest


async def wait_until(event: asyncio.Event, cancel: Callable[[], object] = lambda: None) -> None:
    """Wait for an event. If cancelled, call `cancel`, wait nevertheless, and raise `CancelledError` after it."""
    cancelled: asyncio.CancelledError | None = None
    while not event.is_set():
        try:
            await event.wait()
        except asyncio.CancelledError as error:
            cancelled = error
            cancel()
    if cancelled is not None:
        raise_unchanged(cancelled)


def raise_unchanged(error: BaseException) -> NoReturn:
    """Raise an error of the other side with the context that it had there."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error
