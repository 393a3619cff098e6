"""A run of a router: its objects, their lifetimes, the start and the shutdown.

`Run.run` is a context: connections, routes and telemetry run inside it and nothing outlives it. Leaving it drains:
intake stops, messages in hand are routed, accepted publishes are settled, all before a deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from sys import intern
from typing import TYPE_CHECKING, Any, Protocol

import trio

from router_trio.client.live import Live
from router_trio.client.registry import Registry
from router_trio.connection.latch import cancel_when
from router_trio.connection.platform import REAL_PLATFORM, Platform
from router_trio.connection.supervisor import Connection, ConnectionCounts
from router_trio.errors import ConfigurationError, innermost
from router_trio.events import (
    AsyncioLoopBlocked,
    Emit,
    HandlerLeftBehind,
    Level,
    LifespanLost,
    RouterDraining,
    RouterStarted,
    RouterStopped,
    SettingIgnored,
    StatusPageReady,
    TasksLeftBehind,
)
from router_trio.events.event import Event
from router_trio.link import LOOKUP_WITHIN, Connect, FakeServer, ObservedRouter, fake_server_of
from router_trio.protocol.metadata import created_by
from router_trio.router.forks import ending_children_that_return
from router_trio.router.generations import CLEAN_UP_WITHIN, ConnectionGeneration, RouteGeneration, clean_up
from router_trio.router.watchdog import Answers, Watchdog
from router_trio.routing.builder import RouteBuilder
from router_trio.routing.handlers.calls import Handler
from router_trio.routing.handlers.lifespan import LifespanFunction
from router_trio.routing.handlers.loading import lifespan_problem, load_handlers, load_lifespan
from router_trio.routing.handlers.runtime import HandlerRuntime
from router_trio.routing.pipeline import Routing
from router_trio.routing.route import Route
from router_trio.routing.route_plans import RoutePlan, compile_routes
from router_trio.settings import ConnectionSettings, RouteSettings, Settings
from router_trio.settings.checks.warnings import ignored
from router_trio.settings.reload.state import ConfigState
from router_trio.states import RouteState
from router_trio.subjects.inboxes import never_replied_to
from router_trio.telemetry import Telemetry
from router_trio.telemetry.http.listeners import page_url
from router_trio.telemetry.http.status import unready_parts
from router_trio.telemetry.logs.writer import write_to_stderr
from router_trio.telemetry.readiness_log import watch_readiness
from router_trio.telemetry.services.service import ServedConnection, Service

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from starlette.routing import BaseRoute

    from router_trio.routing.kept_route import KeptRoute, Started

ConnectFactory = Callable[[str, ConnectionSettings], Connect]
"""Returns the `Connect` of a named connection: the real network, a fake broker, or faults around either."""

Pages = Callable[[Emit], "Sequence[BaseRoute]"]
"""Returns HTTP pages in addition to the router's own, which may emit events."""

FIRST_WORKER = 1
"""The number of the first of several workers."""

SOURCES_WITHIN = 10.0
"""Seconds that the start waits for servers to confirm the subscriptions of routes. Later ones become active when they
are confirmed."""

MOST_PLACES = 10
"""Places of tasks left behind that are logged."""


class Changes(Protocol):
    """Changes a run while it lasts."""

    async def run(self) -> None:
        """Carry out requested changes, until cancelled."""

    async def want(self, settings: Settings | Callable[[], Settings]) -> None:
        """Change to these settings, as `Live.reload` does."""

    async def cut_short(self) -> None:
        """Cancel the change in progress and start no more."""


MOST_PAST_CONNECTIONS = 1000
"""Removed connections whose counts are kept."""


class Run:
    """A run of a router: its connections and routes, its start and its end. A `Reload` changes it."""

    def __init__(
        self,
        settings: Settings,
        handlers: Mapping[str, Handler],
        observers: Sequence[Emit],
        log: bool | None,
        connect: ConnectFactory,
        platform: Platform,
        worker: int | None = None,
        write_log: Callable[[bytes], object] = write_to_stderr,
        around: Callable[[RouteSettings, Handler], Handler] | None = None,
        while_blocked: Answers | None = None,
        lifespan: LifespanFunction | None = None,
    ) -> None:
        """Starts nothing; `run` does. `worker` and `write_log` are for one of several workers: see `Telemetry`.

        `around` returns a wrapper that is called in place of a route's handler. `while_blocked` reports that the event
        loop is blocked, in place of an HTTP side of its own. `lifespan` is entered in place of that of the settings.
        Raises `HandlerError` and `ConfigurationError`.
        """
        self._around = around
        self._while_blocked = while_blocked
        self.config: ConfigState = ConfigState(settings, platform.wall_clock())
        self.handlers = handlers
        """The handlers passed in code, by the names of their routes."""
        warnings = None if log else Level.WARN
        self._connect = connect
        self._connects: dict[str, Connect] = {name: connect(name, own) for name, own in settings.connections.items()}
        """The first `Connect` of each connection, until the connection is made."""
        self._fakes: dict[FakeServer, None] = {}
        """The fake servers of a test that these open links to."""
        self._observed: ExitStack | None = None
        for first in self._connects.values():
            self._observe_by(fake_server_of(first))
        self.telemetry: Telemetry = Telemetry(
            _for_test(settings) if self._fakes else settings,
            logs=log is not False,
            least=warnings,
            listeners=(*observers, self._notify_fakes) if self._fakes else observers,
            platform=platform,
            worker=worker,
            write=write_log,
        )
        self.emit: Emit = self.telemetry.emit
        if lifespan is None and settings.router.lifespan is not None:
            if (problem := lifespan_problem(settings.router)) is not None:
                raise settings.refused(problem)
            lifespan = load_lifespan(settings.router.lifespan)
        self.runtime: HandlerRuntime = HandlerRuntime(settings.router, platform, lifespan)
        self._worker = worker
        self._platform = platform
        handler_errors = (_for_test(settings) if self._fakes else settings).telemetry.handler_errors
        self._service: Service | None = Service(platform, worker) if settings.router.service else None
        self._builder = RouteBuilder(
            self.emit,
            self.telemetry.tracing,
            handler_errors=handler_errors,
            built=self.telemetry.taps.built,
            name=settings.router.name,
        )
        self.connections: dict[str, ConnectionGeneration] = {
            name: ConnectionGeneration(self.make_connection(name, settings)) for name in settings.connections
        }
        self.routes: dict[str, RouteGeneration] = {}
        """The current generation of each route of the settings, by name."""
        self.leaving: dict[RouteGeneration, float] = {}
        """Generations that are ending, or that were replaced by one with other settings, and their deadlines."""
        here = {name: generation.connection for name, generation in self.connections.items()}
        self.registry: Registry = Registry()
        self.live: Live = Live(settings.router.name, self.registry, self._ask, self.config)
        for name, generation in self.connections.items():
            self.registry.put_connection(name, generation.connection, generation.publisher)
        for plan in self.plans(settings, settings.routes):
            route = self.build(plan, here)
            self.routes[plan.name] = one = RouteGeneration(route)
            self.registry.put_route(route.state)
            here[plan.connection].attach(route.source)
            one.begin_routing()
        self.streams: set[tuple[str, str]] = {
            (stream.connection, stream.name) for stream in settings.streams if not stream.is_copy
        }
        """Connection and name of the configured streams."""
        self.past_connections: dict[str, ConnectionCounts] = {}
        """The counts of removed connections, which continue if one is added again."""
        self._changes: Changes | None = None
        self._nursery: trio.Nursery | None = None
        self._sheltered = trio.CancelScope(shield=True)
        self._draining = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._needing_lifespan = trio.CancelScope()
        self._returned_before: int | None = None
        self._up = trio.Event()

    # --- settings and parts ---

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.config.settings

    def put_in_force(self, settings: Settings) -> None:
        """Use these settings from now on."""
        self.config.put_in_force(settings, self._platform.wall_clock())
        self.telemetry.taps.change(settings.telemetry)

    def make_connection(self, name: str, settings: Settings, *, refusal_ends: bool = True) -> Connection:
        """Return a new connection with its configured streams."""
        own = settings.connections[name]
        connect = self._connects.pop(name, None) or self._connect(name, own)
        self._observe_by(fake := fake_server_of(connect))
        platform = self._platform
        if fake is not None and platform.wall_clock is REAL_PLATFORM.wall_clock:
            platform = replace(platform, wall_clock=fake.wall_clock)  # a delay must end on the clock of the test
        connection = Connection(
            name, own, connect, self.emit, platform, refusal_ends=refusal_ends, metadata=self.metadata
        )
        for stream in settings.streams:
            if stream.connection == name and not stream.is_copy:
                connection.streams.add(stream.config)
        if self._service is not None:
            responses = connection.listener.responses
            connection.attach_last(
                ServedConnection(name, self._service, lambda: self.live, self._never_replied_to, responses, self.emit)
            )
        return connection

    def metadata(self) -> Mapping[str, str]:
        """Return what identifies this router, and the configuration in force, on what it creates."""
        return created_by(self.config.hash)

    def _never_replied_to(self) -> tuple[bytes, ...]:
        return never_replied_to(one.inbox_prefix for one in self.settings.connections.values())

    def plans(self, settings: Settings, routes: Sequence[RouteSettings]) -> list[RoutePlan]:
        """Return the plans of some routes of the settings. Raises `HandlerError` and `ConfigurationError`."""
        given = {one.name: self.handlers[one.name] for one in routes if one.name in self.handlers}
        try:
            handlers = load_handlers(routes, given, self.runtime)
        except ConfigurationError as error:
            raise settings.refused(*error.problems) from None
        if self._around is not None:
            handlers |= {one.name: self._around(one, handlers[one.name]) for one in routes if one.name in handlers}
        chosen = settings.model_copy(update={"routes": list(routes)})
        return compile_routes(chosen, handlers, self._platform.random.randrange)

    def build(self, plan: RoutePlan, connections: Mapping[str, Connection], before: Route | None = None) -> Route:
        """Return the route of a plan, as `RouteBuilder.build` does."""
        return self._builder.build(plan, connections, before)

    def change(
        self, route: KeptRoute[Any], plan: RoutePlan, connections: Mapping[str, Connection], deadline: float
    ) -> Started:
        """Have a route use other settings, as `RouteBuilder.change` does."""
        return self._builder.change(route, plan, connections, deadline)

    def forget_connection(self, connection: Connection) -> None:
        """Forget what was built for a connection that has ended, as `RouteBuilder.forget_connection` does."""
        self._builder.forget_connection(connection)

    def run_generation(self, generation: ConnectionGeneration | RouteGeneration) -> None:
        """Run one more generation, in the context of the program."""
        assert self._nursery is not None
        name = intern(f"{type(generation).__module__}.{type(generation).__qualname__}.run")
        self.runtime.context.run(partial(self._nursery.start_soon, generation.run, name=name))

    def remember_connection(self, connection: Connection) -> None:
        """Keep the counts of a removed connection."""
        self.past_connections[connection.name] = connection.counts
        if len(self.past_connections) > MOST_PAST_CONNECTIONS:
            del self.past_connections[next(iter(self.past_connections))]

    async def _ask(self, settings: Settings | Callable[[], Settings]) -> None:
        assert self._changes is not None
        await self._changes.want(settings)

    def emit_ignored(self, routes: Sequence[RouteSettings]) -> None:
        """Emit an event for each key of these routes that has no effect."""
        index = {route.name: number for number, route in enumerate(self.settings.routes)}
        for route in routes:
            for problem in ignored(f"routes[{index[route.name]}]", route):
                self.emit(SettingIgnored(at=trio.current_time(), key=problem.path, detail=problem.message))

    # --- the lifetime ---

    @asynccontextmanager
    async def run(self, pages: Pages, stop: trio.Event | None, changes: Changes) -> AsyncIterator[Live]:
        """Run the nursery tree while this is entered."""
        live = self.live
        self._changes = changes
        async with (
            self.telemetry.serve(live, pages=pages(self.emit), first=self._up.wait) as address,
            self.runtime.lasting(self._emit_tasks_left_behind, self._watching_asyncio),
            self.runtime.entered(stop, self._leave_lifespan_by) as is_entered,
            AsyncExitStack() as stack,
            trio.open_nursery() as nursery,
        ):
            self._observed = stack.enter_context(ExitStack())
            for fake in self._fakes:
                self._observed.enter_context(fake.observing(self._observed_router))
            await stack.enter_async_context(self._watching())
            stack.enter_context(ending_children_that_return())
            live.http_address = address
            if address is not None:
                self.emit(StatusPageReady(at=trio.current_time(), url=page_url(*address)))
            if is_entered:  # else the router ends before it has started
                nursery.start_soon(self._work, changes)
                nursery.start_soon(self._end_without_lifespan, nursery.cancel_scope)
            drained = False
            try:
                if is_entered:
                    await self._started(stop)
                self._up.set()
                if self._worker is None:  # a worker's supervisor does this for all workers
                    nursery.start_soon(self._watch_readiness)
                if self.settings.positions and self._worker in (None, FIRST_WORKER):
                    nursery.start_soon(self._keep_checkpoints)
                yield live
                drained = True  # cancelling cuts the drain short from here on
                await self._drain()
            finally:
                try:
                    if not drained:
                        # Cancelled, or the body failed: accepted publishes still get a bounded time.
                        with trio.CancelScope(shield=True):
                            await self._drain()
                    self._stopped()
                finally:
                    self._sheltered.cancel()
                    nursery.cancel_scope.cancel()

    # --- tests ---

    def _observe_by(self, fake: FakeServer | None) -> None:
        """Let the fake server of a test, if this is one, observe this run."""
        if fake is not None and fake not in self._fakes:
            self._fakes[fake] = None
            if self._observed is not None:
                self._observed.enter_context(fake.observing(self._observed_router))

    def _notify_fakes(self, event: Event) -> None:
        for fake in self._fakes:
            fake.observe(event)

    @property
    def _observed_router(self) -> ObservedRouter:
        def unready() -> list[str]:
            parts = [one for part in unready_parts(self.live, trio.current_time) for one in part]
            return [f"{kind} {name}: {one['reason']}" for one in parts for kind, name in list(one.items())[:1]]

        def without_end(name: str) -> bool:
            return any(one.name == name and one.retries_without_end for one in self.settings.routes)

        def unsettled() -> int:
            return sum(one.connection.outbox.ledger.unsettled for one in self.connections.values())

        return ObservedRouter(lambda: self.live.routes, unsettled, unready, without_end)

    # --- inside ---

    def _watching(self) -> AbstractAsyncContextManager[None]:
        """Watch the event loop from a thread, if the platform allows it."""
        if not self._platform.watch_loop:
            return nullcontext()
        token = trio.lowlevel.current_trio_token()
        return Watchdog(
            lambda event: self.telemetry.emit_from_thread(event, token),
            lambda: self._routings,
            lambda: self._while_blocked or self.telemetry.probes,
        ).watching()

    def _watching_asyncio(self, loop: AbstractEventLoop) -> AbstractAsyncContextManager[None]:
        """Watch the asyncio loop of handlers from a thread, if the platform allows it."""
        if not self._platform.watch_loop:
            return nullcontext()
        token = trio.lowlevel.current_trio_token()
        return Watchdog(
            lambda event: token.run_sync_soon(self.emit, event),
            lambda: self._routings,
            kind=AsyncioLoopBlocked,
        ).watching_asyncio(loop)

    async def _keep_checkpoints(self) -> None:
        """Keep checkpoints of the `[[positions]]`, until the run ends. Of several workers, the first one does."""
        # Imported here, because only a router with positions needs it.
        from router_trio.position.checkpoints import keep_checkpoints

        async with trio.open_nursery() as nursery:
            for position in self.settings.positions:
                nursery.start_soon(keep_checkpoints, position, lambda: self.settings, self.emit)

    async def _watch_readiness(self) -> None:
        with self._serving:
            await watch_readiness(lambda: unready_parts(self.live, trio.current_time), self.emit)

    async def _end_without_lifespan(self, scope: trio.CancelScope) -> None:
        """Cancel the body of the run if the lifespan fails before the drain begins: then the router drains."""
        lifespan = self.runtime.lifespan
        if lifespan is not None:
            with self._needing_lifespan:
                await lifespan.failed.wait()
                assert lifespan.error is not None
                self.emit(LifespanLost(at=trio.current_time(), detail=lifespan.error.what, place=lifespan.error.place))
                scope.cancel()

    def _leave_lifespan_by(self) -> float:
        """Return when the lifespan must have ended: with the drain, or a second from now if there is less time."""
        now, timeout = trio.current_time(), self.settings.router.shutdown_timeout
        return max(min(self._draining.deadline, now + timeout), now + CLEAN_UP_WITHIN)

    async def _work(self, changes: Changes) -> None:
        """Run connections and routes. Shielded from cancellation of the body of `open`, since the drain needs them."""
        try:
            with self._sheltered:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    for connection in self.connections.values():
                        self.run_generation(connection)
                    for route in self.routes.values():
                        self.run_generation(route)
                    await changes.run()
        finally:
            # If one failed, all were cancelled, and there is nothing to drain.
            self._draining.cancel()

    async def _started(self, stop: trio.Event | None) -> None:
        async with trio.open_nursery() as nursery:
            if stop is not None:
                nursery.start_soon(cancel_when, stop, nursery.cancel_scope)
            await self.tried(
                [generation.connection for generation in self.connections.values()],
                [generation.route for generation in self.routes.values()],
            )
            nursery.cancel_scope.cancel()
        for problem in self.settings.without_effect:
            self.emit(SettingIgnored(at=trio.current_time(), key=problem.path, detail=problem.message))
        if self._worker is None and self.settings.router.workers > 1:
            detail = "has no effect in a program, whose router is one process; run `router-trio run`, or remove it"
            self.emit(SettingIgnored(at=trio.current_time(), key="router.workers", detail=detail))
        self.emit_ignored(self.settings.routes)
        self.emit(
            RouterStarted(
                at=trio.current_time(),
                name=self.settings.router.name,
                connections=len(self.connections),
                routes=len(self.routes),
            )
        )

    async def tried(self, connections: Sequence[Connection], routes: Sequence[Route]) -> None:
        """Wait until these have tried to connect, subscribe and look up their destinations, for a bounded time."""
        for connection in connections:
            await connection.first_attempt_over.wait()  # bounded by `connect_timeout`
        with trio.move_on_after(SOURCES_WITHIN):
            for route in routes:
                await self._tried(route)
        with trio.move_on_after(LOOKUP_WITHIN):
            for connection in connections:
                if connection.connected:
                    await connection.destinations.first_look_over.wait()

    async def end_leaving(self, generation: RouteGeneration, unsettled: Callable[[int], None]) -> None:
        """End a generation within the time that it has to leave, and forget it.

        `unsettled` gets the number of messages that were received and never routed.
        """
        await generation.end_route(self.leaving[generation], unsettled)
        self.emit_left_behind(generation.route.state, generation.left_behind)
        del self.leaving[generation]
        self.forget_route(generation.route.state)

    def forget_route(self, state: RouteState) -> None:
        """Forget the destinations that a route has had, once all of its messages are settled."""
        for connection in self.connections.values():
            connection.connection.destinations.forget_route(state)

    def emit_left_behind(self, state: RouteState, count: int) -> None:
        """Emit an event if calls of a route's handler hang now that they were ended."""
        if count:
            self.emit(HandlerLeftBehind(at=trio.current_time(), route=state.name, count=count))

    def _emit_tasks_left_behind(self, places: Sequence[str]) -> None:
        self.emit(TasksLeftBehind(at=trio.current_time(), count=len(places), places=tuple(places[:MOST_PLACES])))

    async def _tried(self, route: Route) -> None:
        """Wait until a route has tried to subscribe, or its connection is lost."""
        generation = self.connections.get(route.state.connection)
        if generation is None or route.source.first_try_over.is_set():
            return  # as for most of many routes, which then need no tasks
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when, route.source.first_try_over, nursery.cancel_scope)
            while generation.connection.connected:
                await generation.connection.changed()
            nursery.cancel_scope.cancel()

    def cause_of(self, group: BaseExceptionGroup) -> BaseException:
        """Return the error that ended the run, out of the group that its nurseries raised: see `innermost`.

        A handler that exits cancel scopes of the router makes Trio raise in many places, without naming the handler.
        """
        lost = (routing.lost for routing in self._routings)
        return next((one for one in lost if one is not None), None) or innermost(group)

    # --- the end ---

    async def _drain(self) -> None:
        """Stop intake, let routes finish and accepted operations be settled, within `shutdown_timeout`."""
        self._serving.cancel()
        self._needing_lifespan.cancel()
        if self._changes is not None:
            await self._changes.cut_short()
        timeout = self.settings.router.shutdown_timeout
        replaced = self._begin_or_abandon()
        connections = [generation.connection for generation in self.connections.values()]
        pending = sum(connection.outbox.ledger.unsettled for connection in connections)
        self._returned_before = self._returned
        self.emit(RouterDraining(at=trio.current_time(), pending_count=pending, timeout_seconds=timeout))
        for generation in self._all_routes:
            generation.route.close_intake()
        self._draining.deadline = trio.current_time() + timeout
        with self._draining:
            async with trio.open_nursery() as nursery:
                for before, successor in replaced:
                    nursery.start_soon(self._end_and_begin, before, successor)
            for generation in self._all_routes:
                await generation.route.idle()
            for connection in connections:
                await connection.idle()
        reported = {generation: generation.calls_left_behind for generation in self._all_routes}
        self._abandon()
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(clean_up, connection, min(timeout, CLEAN_UP_WITHIN))
            for generation in self._all_routes:
                if generation.route.state.handling:
                    nursery.start_soon(generation.ended)
        for generation in self._all_routes:
            if generation.route.state.handling or generation.calls_left_behind > reported.get(generation, 0):
                self.emit_left_behind(generation.route.state, generation.left_behind)

    def _begin_or_abandon(self) -> list[tuple[RouteGeneration, RouteGeneration]]:
        """Start the routes of a reload that was cut short. Abandon those waiting for a connection not yet made.

        Return those whose predecessor has not ended, each behind its predecessor. They must not start earlier: both
        would call the handler, even for messages of one key.
        """
        leaving = {generation.route.state.name: generation for generation in self.leaving}
        replaced = []
        for name, generation in self.routes.items():
            if generation.begun:
                continue
            if not all(one is self._connection(one.name) for one in generation.route.connections):
                self._count_unsettled(generation.route.abandon())
            elif name in leaving:
                replaced.append((leaving[name], generation))
            else:
                generation.begin_routing()
        self.registry.release_publishers()
        return replaced

    async def _end_and_begin(self, before: RouteGeneration, successor: RouteGeneration) -> None:
        """End a replaced route and start its successor, as the reload would have if it had not been cut short."""
        await self.end_leaving(before, self._count_unsettled)
        successor.begin_routing()

    def _connection(self, name: str) -> Connection | None:
        generation = self.connections.get(name)
        return None if generation is None else generation.connection

    @property
    def _all_routes(self) -> list[RouteGeneration]:
        return [*self.leaving, *self.routes.values()]

    @property
    def _routings(self) -> list[Routing]:
        return [routing for generation in self._all_routes for routing in generation.route.routings]

    def _abandon(self) -> None:
        for generation in self._all_routes:
            self._count_unsettled(generation.route.abandon())

    def _count_unsettled(self, count: int) -> None:
        self.live.unsettled += count

    @property
    def _returned(self) -> int:
        """Number of messages that the routes have returned to their streams."""
        return sum(route.settled["returned"] for route in self.live.routes)

    def _stopped(self) -> None:
        if self._returned_before is None:
            self._returned_before = self._returned
        self._abandon()
        for generation in self.connections.values():
            self.live.unsettled += generation.connection.shut_down()
        # When the drain was cut short, handlers have not ended yet: their messages were nak'ed with the others.
        kept = [one.route for one in self._all_routes if one.route.routing.plan.settings.source.kind.redelivers]
        in_handlers = sum(route.state.in_hand for route in kept)
        self.emit(
            RouterStopped(
                at=trio.current_time(),
                ledger=self.live.ledger(),
                unsettled=self.live.unsettled,
                redelivered=self._returned - self._returned_before + in_handlers,
            )
        )


def _for_test(settings: Settings) -> Settings:
    """Return the settings with full errors of handlers, unless `handler_errors` is set: a test has no secrets."""
    telemetry = settings.telemetry
    if "handler_errors" in telemetry.model_fields_set:
        return settings
    return settings.adapted(telemetry=telemetry.model_copy(update={"handler_errors": "full"}))
