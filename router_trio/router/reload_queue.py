"""Queues reloads: one is carried out at a time, and of those that wait only the last is kept.

A configuration that can't be used is refused before anything is changed. A waiting reload is replaced by the next one,
and its caller then waits for that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from router_trio.errors import ConfigurationError, Problem
from router_trio.events import ReloadRefused
from router_trio.router.run import Run
from router_trio.routing.handlers.loading import handler_problem
from router_trio.settings import Settings
from router_trio.settings.checks.handlers import without_handler

if TYPE_CHECKING:
    from router_trio.settings.reload.difference import Difference

FEW_ROUTES = 64
"""Routes that are compared without delay; comparing more of them would hold up messages for too long."""


T = TypeVar("T")


def lacks_thread(error: RuntimeError) -> bool:
    """Return True if this error was raised because the system has no thread left."""
    return "new thread" in str(error)


async def read_in_thread(read: Callable[[], T]) -> T:
    """Call `read`, which reads settings, in a thread. It is abandoned if cancelled, since the file system may hang.

    Raises as `read` does, and `ConfigurationError` if the system has no thread left.
    """
    try:
        return await trio.to_thread.run_sync(read, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True)
    except RuntimeError as error:
        if not lacks_thread(error):
            raise
        why = "the system has no thread left to read the configuration; raise its limits (TasksMax), and reload again"
        raise ConfigurationError([Problem("", why)]) from error


class _Request:
    """Settings to reload, for all callers that wait for it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.over = trio.Event()


class ReloadQueue:
    """The reloads of one run, as its `Changes`.

    `in_code` are routes added in code, which every reload keeps although its settings do not contain them.
    """

    def __init__(self, run: Run, in_code: Sequence[Mapping[str, Any]]) -> None:
        self._run = run
        self._in_code = in_code
        self._next: _Request | None = None
        self._asked = trio.Event()
        self._scope = trio.CancelScope()
        self._under_way: _Request | None = None
        self._stopped = False

    async def want(self, settings: Settings | Callable[[], Settings]) -> None:
        try:
            if not isinstance(settings, Settings):
                settings = await read_in_thread(settings)
            settings = self._checked(settings)
        except ConfigurationError as error:
            problems = tuple(str(error).splitlines())
            refused = ReloadRefused(at=trio.current_time(), count=len(error.problems), problems=problems)
            self._run.config.refuse(refused.problems)
            self._run.emit(refused)
            raise
        if self._stopped:
            return
        self._run.config.accept()
        if self._next is None:
            self._next = _Request(settings)
        self._next.settings = settings
        self._asked.set()
        await self._next.over.wait()

    async def run(self) -> None:
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            request, self._next = self._next, None
            if request is None or self._stopped:
                continue
            # Imported here, since most runs end without a reload.
            from router_trio.router.reload import Reload

            self._under_way = request
            self._scope = trio.CancelScope()
            try:
                with self._scope:
                    found = await self._difference(request.settings)
                    await Reload(self._run, request.settings, found).carry_out()
            finally:
                self._under_way = None
                request.over.set()

    async def cut_short(self) -> None:
        """Cancel the reload in progress and start no more: the shutdown takes precedence."""
        self._stopped = True
        self._scope.cancel()
        # Before anything is awaited: `run` may take the waiting reload as soon as the one in progress is over.
        if self._next is not None:
            self._next.over.set()
        if self._under_way is not None:
            await self._under_way.over.wait()

    async def _difference(self, settings: Settings) -> Difference:
        before = self._run.settings
        if len(before.routes) <= FEW_ROUTES:
            return _compared(before, settings)
        # In a thread, so that messages are routed meanwhile; with a limiter of its own, since the program's may be used
        # up.
        try:
            return await trio.to_thread.run_sync(_compared, before, settings, limiter=trio.CapacityLimiter(1))
        except RuntimeError as error:
            if not lacks_thread(error):
                raise
            return _compared(before, settings)  # holds up messages, which is better than no reload

    def _checked(self, settings: Settings) -> Settings:
        """Return settings with which no reload fails, and the routes added in code. Raises `ConfigurationError`."""
        named = {route.name for route in settings.routes}
        missing = [route for route in self._in_code if route["name"] not in named]
        if missing:
            settings = settings.with_changes(routes=[*settings.routes, *missing])
        settings.require_servers()
        handlers = self._run.handlers
        problems = without_handler(settings.routes, handlers)
        has_lifespan = self._run.runtime.lifespan is not None  # a reload does not change that
        for index, route in enumerate(settings.routes):
            given = handlers.get(route.name)
            if (problem := handler_problem(index, route, given, has_lifespan=has_lifespan)) is not None:
                problems.append(problem)
        if any(route.source.partitions is not None for route in (*settings.routes, *self._run.settings.routes)):
            from router_trio.settings.reload.difference import other_partitions

            problems += other_partitions(self._run.settings, settings)
        if problems:
            raise settings.refused(*problems)
        return settings


def _compared(before: Settings, settings: Settings) -> Difference:
    """Return the effect of a reload. Also compute the hash of the new settings, so that no page has to."""
    from router_trio.settings.reload.difference import difference

    _ = settings.content_hash
    return difference(before, settings)
