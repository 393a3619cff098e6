"""The lifespan of a router: an async context manager of the user, around all calls of handlers.

It runs in a task of its own, on Trio or on the asyncio loop of the handlers. So scopes and nurseries that it opens are
around nothing else, and what it raises is caught here and attributed to it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context, copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any

import trio

from router_trio.connection.latch import cancel_when
from router_trio.errors import LifespanError, innermost
from router_trio.errors.quotes import LONGEST_TEXT, excerpt
from router_trio.message import Message
from router_trio.routing.handlers.asyncio_loop import AsyncioLoop
from router_trio.routing.handlers.calls import Handler
from router_trio.routing.handlers.errors import explained, raise_if_signal, text_of
from router_trio.routing.handlers.tracebacks import Raised, place_of

if TYPE_CHECKING:
    import asyncio

LifespanFunction = Callable[[], AbstractAsyncContextManager[Any]]
"""Returns the async context manager that is entered before the first message and left after the last."""

MANAGER_CURE = "use contextlib.asynccontextmanager on an async def with one yield"
"""How to write a function that returns an async context manager."""


class _NoManagerError(Exception):
    """The function of a lifespan has returned something else than an async context manager."""


class Lifespan:
    """A lifespan, entered while `entered` is."""

    def __init__(self, function: LifespanFunction, name: str, loop: AsyncioLoop | None) -> None:
        """`loop` is the asyncio loop on which it runs; None: on Trio."""
        self._function = function
        self._name = name
        self._loop = loop
        self._scope = trio.CancelScope(shield=True)
        self._tried = trio.Event()
        self._is_entered = False
        self._ends = trio.Event()
        self._ends_on_loop: asyncio.Event | None = None
        self._is_leaving = False
        self.value: Any = None
        """The value that it has yielded, which handlers get as their second parameter."""
        self.context: Context | None = None
        """The context in which it has yielded, with the variables that it has set; None until then."""
        self.failed: trio.Event = trio.Event()
        """Set when it has raised, or has ended while the router runs."""
        self.error: LifespanError | None = None
        """Why it has failed."""

    def passed_to(self, handler: Handler) -> Handler:
        """Return a handler with one parameter, which passes the value as the second one."""

        @wraps(handler)
        def call(message: Message) -> Any:
            return handler(message, self.value)  # type: ignore[call-arg]

        return call

    @asynccontextmanager
    async def entered(self, stop: trio.Event | None, leave_by: Callable[[], float]) -> AsyncIterator[bool]:
        """Enter the lifespan, and leave it with this context, also when cancelled, by the deadline of `leave_by`.

        Yields False if `stop` was set before it was entered. Raises `LifespanError` if it fails, unless the body has
        raised something else.
        """
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            try:
                await self._until_tried(stop)
                if self.error is None:
                    yield self._is_entered
            except BaseException as error:
                failure = error  # raised outside of the nursery, which would wrap it in a group
            nursery.cancel_scope.shield = True
            self._leave(leave_by())
        if failure is not None:
            raise failure
        if self.error is not None:
            raise self.error

    async def _until_tried(self, stop: trio.Event | None) -> None:
        async with trio.open_nursery() as nursery:
            if stop is not None:
                nursery.start_soon(cancel_when, stop, nursery.cancel_scope)
            await self._tried.wait()
            nursery.cancel_scope.cancel()

    def _leave(self, deadline: float) -> None:
        self._is_leaving = True
        if not self._is_entered:
            self._scope.cancel()
            return
        self._scope.deadline = deadline
        self._ends.set()
        if self._loop is not None and self._loop.calls is not None and self._ends_on_loop is not None:
            with suppress(RuntimeError):  # the loop of the program may be closed by now
                self._loop.calls.loop.call_soon_threadsafe(self._ends_on_loop.set)

    async def _run(self) -> None:
        raised: BaseException | None = None
        try:
            with self._scope:
                if self._loop is None:
                    await self._hold_on_trio()
                else:
                    calls = await self._loop.opened()
                    await calls.call(self._hold_on_loop, trio.lowlevel.current_trio_token())
        except BaseException as error:
            raise_if_signal(error)
            raised = explained(innermost(error, BaseException))
        self.error = self._failure(raised)
        if self.error is not None:
            self.failed.set()
        self._tried.set()

    def _manager(self) -> AbstractAsyncContextManager[Any]:
        manager: object = self._function()
        if isinstance(manager, AbstractAsyncContextManager):
            return manager
        if isinstance(manager, Coroutine):
            manager.close()  # Python would warn that it was never awaited
        returned = "None" if manager is None else f"a value of the type {type(manager).__qualname__}"
        raise _NoManagerError(f"must return an async context manager, and returned {returned}: {MANAGER_CURE}")

    async def _hold_on_trio(self) -> None:
        async with self._manager() as value:
            self._enter(value, copy_context())
            await self._ends.wait()

    async def _hold_on_loop(self, token: trio.lowlevel.TrioToken) -> None:
        import asyncio  # imported by now

        self._ends_on_loop = asyncio.Event()
        async with self._manager() as value:
            token.run_sync_soon(self._enter, value, copy_context())
            await self._ends_on_loop.wait()

    def _enter(self, value: Any, context: Context) -> None:
        self.value, self.context, self._is_entered = value, context, True
        self._tried.set()

    def _failure(self, raised: BaseException | None) -> LifespanError | None:
        """Return what went wrong, now that the lifespan is over."""
        if not self._is_entered and self._is_leaving:
            return None  # it was cancelled because the router ends
        when = "before the router has started"
        if self._is_entered:
            when = "when the router ended" if self._is_leaving else "while the router was running"
        if isinstance(raised, _NoManagerError):
            place, what = place_of(self._function), str(raised)
        elif raised is not None:
            place = Raised(raised, self._function).place
            text = excerpt(text_of(raised), LONGEST_TEXT)
            what = f"raised {type(raised).__qualname__} {when}" + (text and f": {text}")
        elif self._scope.cancelled_caught:
            place = place_of(self._function)
            what = "did not end within shutdown_timeout, and was cancelled"
        elif not self._is_leaving:
            place, what = place_of(self._function), f"ended {when}"
        else:
            return None
        error = LifespanError(self._name, what, place)
        error.__cause__ = raised
        return error
