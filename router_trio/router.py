"""The router: the nursery tree and the public face of the package.

`Router.open()` is a lifetime: connections, routes and telemetry run inside it and nothing outlives it. Leaving it
drains: intake stops, what is in hand is routed, what is accepted is settled, and a deadline bounds all of that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from router_trio.client.live import Live
from router_trio.connection.platform import REAL_PLATFORM, Platform
from router_trio.connection.supervisor import Connection
from router_trio.errors import ConfigurationError, LinkError, Problem, innermost
from router_trio.events import (
    Emit,
    Level,
    RouterDraining,
    RouterStarted,
    RouterStopped,
    SettingIgnored,
    StatusPageReady,
)
from router_trio.link import LOOKUP_WITHIN, Connect
from router_trio.nats.link import Dialer
from router_trio.routing.builder import build_routes
from router_trio.routing.handlers import Handler, load_handlers, unfit
from router_trio.routing.plans import compile_routes
from router_trio.routing.route import Route
from router_trio.settings import ConnectionSettings, Settings
from router_trio.settings.checks.warnings import ignored
from router_trio.telemetry import Telemetry
from router_trio.telemetry.http.listeners import page_url

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

H = TypeVar("H", bound=Handler)

ConnectFactory = Callable[[str, ConnectionSettings], Connect]
"""Makes the `Connect` of a named connection: the real network, a fake broker, faults around either."""

Pages = Callable[[Emit], "Sequence[BaseRoute]"]
"""Makes pages for the HTTP side beside the router's own; may emit events."""

SOURCES_WITHIN = 10.0
"""Seconds that the start waits for servers to answer the subscriptions of routes. Those that are late come later."""

CLEAN_UP_WITHIN = 1.0
"""Seconds for the last fence, in which acks that were just written reach their servers."""


def no_pages(emit: Emit) -> Sequence[BaseRoute]:
    """No pages but the router's own."""
    return ()


def real_network(name: str, settings: ConnectionSettings) -> Connect:
    """Connect to NATS."""
    return Dialer(settings, name)


class Router:
    """Routes messages by settings and by handlers.

    `observers` are told every event. Warnings and errors are written to stderr, with `log=True` all that `log_level` of
    the settings lets through, with `log=False` nothing. `connect` is for tests and for fault injection; `pages` are
    served beside the router's own; `platform` gives the wall clock and random numbers.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        observers: Sequence[Emit] = (),
        log: bool | None = None,
        connect: ConnectFactory = real_network,
        pages: Pages = no_pages,
        platform: Platform = REAL_PLATFORM,
    ) -> None:
        self._settings = settings
        self._observers = tuple(observers)
        self._log = log
        self._connect = connect
        self._pages = pages
        self._platform = platform
        self._handlers: dict[str, Handler] = {}

    @property
    def settings(self) -> Settings:
        """The settings, with the routes that were added by `route`."""
        return self._settings

    def route(
        self,
        subject: str | None = None,
        *,
        to: str | dict[str, Any] | Sequence[str | dict[str, Any]] = (),
        respond: bool = False,
        name: str | None = None,
        connection: str | None = None,
        retry: dict[str, Any] | None = None,
        dead_letter: dict[str, Any] | None = None,
        **source: Any,
    ) -> Callable[[H], H]:
        """Add a route through the decorated function, which is called with each message.

        `to` is one destination or several: a subject, or a dict with the keys of `[[routes.to]]`. With `respond`, what
        the function returns answers the message, and `to` may be left out. `connection` is the source's, and the
        default of the destinations'. `retry` and `dead_letter` have the keys of `[routes.retry]` and
        `[routes.dead_letter]`. `source` takes the other keys of `[routes.from]`: `queue`, `stream`, `durable`,
        `filter`, ... The route is named like the function.

        Raises `ConfigurationError` for anything that a configuration file would be refused for.
        """
        destinations = [to] if isinstance(to, str | dict) else list(to)

        def add(handler: H) -> H:
            if (wrong := unfit(handler)) is not None:
                raise ConfigurationError([Problem(f"routes[{len(self._settings.routes)}].handler", wrong)])
            more = {"retry": retry, "dead_letter": dead_letter, "respond": respond}
            self._add(handler, subject, destinations, name or handler.__name__, connection, source, more)
            return handler

        return add

    @asynccontextmanager
    async def open(self, *, stop: trio.Event | None = None) -> AsyncIterator[Live]:
        """Run the router while this is entered.

        Entering returns when the first attempt of each connection is over and every subscription that could be made
        is alive: a server that is away is not waited for, and one that falls silent for `SOURCES_WITHIN` seconds. It
        also returns when `stop` is set, for a program that is told to end while it starts. Leaving drains within
        `shutdown_timeout`, also when cancelled; what is left then is counted in `Live.unsettled`.

        Raises `AuthorizationError` or `CertificateError` if a server refuses at the start, `ListenError` if the HTTP
        address is taken, `ConnectionExhaustedError` if a connection gives up; errors of the body come out as they are.
        """
        self._settings.require_servers()
        failure: BaseException | None = None
        try:
            run = _Run(self._settings, self._handlers, self._observers, self._log, self._connect, self._platform)
            async with run.live(self._pages, stop) as live:
                try:
                    yield live
                except BaseException as error:
                    failure = error
                    raise
        except BaseExceptionGroup as group:
            # A group of a nursery in the body is the body's own error: it is not to be taken apart.
            bare = innermost(group) if failure is None or _is_cancelled(failure) else failure
        else:
            return
        raise bare  # out here, so that it keeps its cause and its context

    def _add(
        self,
        handler: Handler,
        subject: str | None,
        to: Sequence[str | dict[str, Any]],
        name: str,
        connection: str | None,
        source: dict[str, Any],
        more: dict[str, Any],
    ) -> None:
        default = {} if connection is None else {"connection": connection}
        destinations = [{**default, **({"subject": one} if isinstance(one, str) else one)} for one in to]
        origin = {**default, **source} if subject is None else {**default, **source, "subject": subject}
        route = {"name": name, "from": origin, "to": destinations, **more}
        known = {name: getattr(self._settings, name) for name in Settings.model_fields}
        self._settings = Settings(**known | {"routes": [*self._settings.routes, route]})
        self._handlers[name] = handler


class _Run:
    """One run of a router: its objects, and their lifetimes."""

    def __init__(
        self,
        settings: Settings,
        handlers: dict[str, Handler],
        observers: Sequence[Emit],
        log: bool | None,
        connect: ConnectFactory,
        platform: Platform,
    ) -> None:
        self._settings = settings
        warnings = None if log else Level.WARN
        self._telemetry = Telemetry(
            settings, logs=log is not False, least=warnings, listeners=observers, platform=platform
        )
        self._emit = self._telemetry.emit
        self._connections = {
            name: Connection(name, one, connect(name, one), self._emit, platform)
            for name, one in settings.connections.items()
        }
        for stream in settings.streams:
            self._connections[stream.connection].streams.add(stream.config)
        plans = compile_routes(settings, load_handlers(settings.routes, handlers), platform.random.randrange)
        self._routes: list[Route] = build_routes(
            plans,
            self._connections,
            self._emit,
            self._telemetry.tracing,
            handler_errors=settings.telemetry.handler_errors,
        )
        self._live = Live(settings.router.name, self._connections, [route.state for route in self._routes])
        self._sheltered = trio.CancelScope(shield=True)
        self._draining = trio.CancelScope()
        self._up = trio.Event()

    @asynccontextmanager
    async def live(self, pages: Pages, stop: trio.Event | None) -> AsyncIterator[Live]:
        """The nursery tree."""
        live = self._live
        async with (
            self._telemetry.serve(live, pages=pages(self._emit), first=self._up.wait) as address,
            trio.open_nursery() as nursery,
        ):
            live.http_address = address
            if address is not None:
                self._emit(StatusPageReady(at=trio.current_time(), url=page_url(*address)))
            nursery.start_soon(self._work)
            drained = False
            try:
                await self._started(stop)
                self._up.set()
                yield live
                drained = True  # cancelled from here on, it is cut short
                await self._drain()
            finally:
                try:
                    if not drained:
                        # Cancelled, or the body failed: what was accepted still gets its chance, for a bounded time.
                        with trio.CancelScope(shield=True):
                            await self._drain()
                    self._stopped()
                finally:
                    self._sheltered.cancel()
                    nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        """Connections and routes. What cancels the body of `open` must not end them: the drain needs them."""
        try:
            with self._sheltered:
                async with trio.open_nursery() as nursery:
                    for connection in self._connections.values():
                        nursery.start_soon(connection.run)
                    for publisher in self._live.publishers.values():
                        nursery.start_soon(publisher.run)
                    for route in self._routes:
                        nursery.start_soon(route.run)
        finally:
            # One that failed took the others along: there is nobody left to wait for.
            self._draining.cancel()

    async def _started(self, stop: trio.Event | None) -> None:
        async with trio.open_nursery() as nursery:
            if stop is not None:
                nursery.start_soon(_cancel_when, stop, nursery.cancel_scope)
            for connection in self._connections.values():
                await connection.first_attempt_over.wait()  # which `connect_timeout` bounds
            with trio.move_on_after(SOURCES_WITHIN):
                for route in self._routes:
                    await self._tried(route)
            with trio.move_on_after(LOOKUP_WITHIN):
                for connection in self._connections.values():
                    if connection.connected:
                        await connection.destinations.first_look_over.wait()
            nursery.cancel_scope.cancel()
        problems = list(self._settings.without_effect)
        for index, route_settings in enumerate(self._settings.routes):
            problems += ignored(f"routes[{index}]", route_settings)
        for problem in problems:
            self._emit(SettingIgnored(at=trio.current_time(), key=problem.path, detail=problem.message))
        self._emit(
            RouterStarted(
                at=trio.current_time(),
                name=self._settings.router.name,
                connections=len(self._connections),
                routes=len(self._routes),
            )
        )

    async def _tried(self, route: Route) -> None:
        """Wait until a route has tried to subscribe, or its connection is gone."""
        connection = self._connections[route.state.connection]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, route.first_try_over, nursery.cancel_scope)
            while connection.connected:
                await connection.changed()
            nursery.cancel_scope.cancel()

    async def _drain(self) -> None:
        """Stop intake, let routes finish, let every accepted operation meet its fate; within `shutdown_timeout`."""
        timeout = self._settings.router.shutdown_timeout
        pending = sum(connection.outbox.ledger.unsettled for connection in self._connections.values())
        self._emit(RouterDraining(at=trio.current_time(), pending_count=pending, timeout_seconds=timeout))
        for route in self._routes:
            route.close_intake()
        self._draining.deadline = trio.current_time() + timeout
        with self._draining:
            for route in self._routes:
                await route.idle()
            for connection in self._connections.values():
                await connection.idle()
        self._abandon()
        with trio.move_on_after(min(timeout, CLEAN_UP_WITHIN)):
            for connection in self._connections.values():
                if connection.link is not None:
                    with suppress(LinkError):  # it may die just now: what is not with its server is not acked
                        await connection.link.fence()

    def _abandon(self) -> None:
        for route in self._routes:
            self._live.unsettled += route.abandon()

    def _stopped(self) -> None:
        self._abandon()
        for connection in self._connections.values():
            self._live.unsettled += connection.shut_down()
        self._emit(RouterStopped(at=trio.current_time(), ledger=self._live.ledger(), unsettled=self._live.unsettled))


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _is_cancelled(error: BaseException) -> bool:
    """Return True if something else failed, or the caller gave up: then this is not what it is about."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
