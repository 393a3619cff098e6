"""The public face of the package: how a router is configured and opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import trio

from router_trio.client.live import Live
from router_trio.client.require_trio import require_trio
from router_trio.connection.platform import REAL_PLATFORM, Platform
from router_trio.errors import ConfigurationError, HandlerError, Problem
from router_trio.events import Emit
from router_trio.link import Connect
from router_trio.nats.link import Dialer, client_name
from router_trio.router.reload_queue import ReloadQueue
from router_trio.router.run import ConnectFactory, Pages, Run
from router_trio.routing.handlers.bodies import typed
from router_trio.routing.handlers.calls import Handler
from router_trio.routing.handlers.lifespan import LifespanFunction
from router_trio.routing.handlers.loading import unfit, unfit_lifespan
from router_trio.settings import ConnectionSettings, Settings
from router_trio.settings.problems import key_path, keys_of, nearest, unknown_key
from router_trio.settings.routes.route import RouteSettings
from router_trio.settings.routes.source import SourceSettings
from router_trio.settings.sections import HandlerLoop

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from starlette.routing import BaseRoute

    from router_trio.router.options import (
        BucketOptions,
        DeadLetterOptions,
        DestinationOptions,
        Function,
        LimitOptions,
        RetryOptions,
        SourceOptions,
        Texts,
    )
    from router_trio.settings.routes.route import Strategy

H = TypeVar("H", bound="Function")


def no_pages(emit: Emit) -> Sequence[BaseRoute]:
    """Return no pages besides the router's own."""
    return ()


def real_network(name: str, settings: ConnectionSettings, router: str = "router-trio") -> Connect:
    """Return the `Connect` to NATS. A server's reports name the client by `router`, connection and process."""
    return Dialer(settings, client_name(router, name))


class Router:
    """Routes messages by settings and by handlers.

    `observers` are called with every event. Warnings and errors are written to stderr; with `log=True` everything that
    `log_level` of the settings allows, with `log=False` nothing. `connect` is for tests and for fault injection, by
    default `real_network`. `pages` are served in addition to the router's own; `platform` provides the wall clock and
    random numbers.

    `lifespan` returns an async context manager, which `open` enters before the first message and leaves after the
    last, in place of the one in the settings. It runs on the loop that `[router] loop` names. Handlers with two
    parameters get the value that it yields.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        observers: Sequence[Emit] = (),
        log: bool | None = None,
        connect: ConnectFactory | None = None,
        pages: Pages = no_pages,
        platform: Platform = REAL_PLATFORM,
        lifespan: LifespanFunction | None = None,
    ) -> None:
        if lifespan is not None and (wrong := unfit_lifespan(lifespan)) is not None:
            raise ConfigurationError([Problem("router.lifespan", wrong)])
        self._settings = settings
        self._lifespan = lifespan
        self._observers = tuple(observers)
        self._log = log
        self._connect = connect or partial(real_network, router=settings.router.name)
        self._pages = pages
        self._platform = platform
        self._handlers: dict[str, Handler] = {}
        self._in_code: list[dict[str, Any]] = []

    @property
    def settings(self) -> Settings:
        """The settings, including the routes added by `route`."""
        return self._settings

    def route(
        self,
        subject: str | None = None,
        *,
        to: str | DestinationOptions | BucketOptions | Sequence[str | DestinationOptions | BucketOptions] = (),
        respond: bool = False,
        reply_to: Texts = (),
        name: str | None = None,
        connection: str | None = None,
        retry: RetryOptions | None = None,
        dead_letter: DeadLetterOptions | None = None,
        when: str | None = None,
        strategy: Strategy = "all",
        limit: LimitOptions | None = None,
        key: str | None = None,
        concurrency: int = 1,
        thread: bool = False,
        loop: HandlerLoop | None = None,
        hop_limit: int | None = None,
        schema: str | Path | None = None,
        **source: Unpack[SourceOptions],
    ) -> Callable[[H], H]:
        """Add a route through the decorated function, which is called with each message, or with its JSON body.

        The function gets the body if its first parameter is annotated with another type than `Message`.

        `to` is one destination or several: a subject, or a dict with the keys of `[[routes.to]]`. With `respond`, the
        function's return value answers the message, and `to` may be omitted. `connection` is that of the source, and
        the default of the destinations. `retry`, `dead_letter` and `limit` have the keys of `[routes.retry]`,
        `[routes.dead_letter]` and `[routes.limit]`; `when`, `strategy`, `key`, `concurrency`, `thread`, `loop`,
        `hop_limit`, `schema` and `reply_to` are those of `[[routes]]`. `source` takes the other keys of
        `[routes.from]`: `queue`, `stream`, `durable`, `filter`, ... By default the route is named after the function.

        Raises `ConfigurationError` for anything that would make a configuration file invalid.
        """
        destinations: list[Any] = [to] if isinstance(to, str | dict) else list(to)

        def add(handler: H) -> H:
            path = f"routes[{len(self._settings.routes)}].handler"
            has_lifespan = (self._lifespan or self._settings.router.lifespan) is not None
            if (wrong := unfit(handler, has_lifespan=has_lifespan)) is not None:
                raise ConfigurationError([Problem(path, wrong)])
            try:
                called = typed(handler)
            except HandlerError as error:
                shown = f"handler {getattr(handler, '__qualname__', type(handler).__qualname__)!r}: {error}"
                raise ConfigurationError([Problem(path, shown)]) from error
            named: str = name or str(getattr(handler, "__name__", type(handler).__name__))
            more: dict[str, Any] = {"retry": retry, "dead_letter": dead_letter, "limit": limit, "respond": respond}
            more |= {"when": when, "strategy": strategy, "key": key, "concurrency": concurrency, "thread": thread}
            more |= {"loop": loop, "hop_limit": hop_limit, "schema": schema, "reply_to": list(reply_to)}
            self._add(called, subject, destinations, named, connection, dict(source), more)
            return handler

        return add

    @asynccontextmanager
    async def open(
        self,
        *,
        stop: trio.Event | None = None,
        connect: ConnectFactory | None = None,
        listen: str | None = None,
        asyncio_loop: AbstractEventLoop | None = None,
    ) -> AsyncIterator[Live]:
        """Run the router while this context is entered.

        Entering returns when the first attempt of each connection is over and every subscription that could be made is
        active. It does not wait for a server that is away, and waits at most `SOURCES_WITHIN` seconds for a server that
        does not answer. It also returns when `stop` is set, for a program that has to end while it starts. Leaving
        drains within `shutdown_timeout`, also when cancelled; messages left then are counted in `Live.unsettled`.

        `connect` replaces the one passed to the constructor, and `listen` replaces `telemetry.listen` (`""`: no HTTP).
        With both, a test runs the router of a program on a fake broker. `asyncio_loop` is a running loop of the
        program, on which handlers with `loop = "asyncio"` are called; by default the router has one in a thread.

        Raises `TrioRequiredError` outside of Trio, and `ConfigurationError` for an invalid `listen`. Raises
        `AuthorizationError` or `CertificateError` if a server refuses at the start, `ListenError` if the HTTP address
        is taken, `ConnectionExhaustedError` if a connection gives up. Raises `LifespanError` if the lifespan fails: if
        that happens while the router runs, the body is cancelled, and the router drains first. Errors of the body are
        raised unchanged.
        """
        require_trio()
        settings = self._settings
        if listen is not None:
            settings = settings.with_changes(
                telemetry=settings.telemetry.model_dump(exclude_unset=True) | {"listen": listen}
            )
        settings.require_servers()
        failure: BaseException | None = None
        platform = self._platform if asyncio_loop is None else _with_loop(self._platform, asyncio_loop)
        run = Run(
            settings,
            self._handlers,
            self._observers,
            self._log,
            connect or self._connect,
            platform,
            lifespan=self._lifespan,
        )
        try:
            async with run.run(self._pages, stop, ReloadQueue(run, self._in_code)) as live:
                try:
                    yield live
                except BaseException as error:
                    failure = error
                    raise
        except BaseExceptionGroup as group:
            # A group of a nursery in the body is the body's own error, and must not be taken apart.
            bare = run.cause_of(group) if failure is None or _is_cancelled(failure) else failure
        else:
            return
        raise bare  # raised outside of the `except`, so that it keeps its cause and its context

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
        problems = [self._unknown(key) for key in source if key not in keys_of(SourceSettings)]
        known = {key: value for key, value in source.items() if key in keys_of(SourceSettings)}
        origin = {**default, **known} if subject is None else {**default, **known, "subject": subject}
        route = {"name": name, "from": origin, "to": destinations, **more}
        try:
            settings = self._settings.with_changes(routes=[*self._settings.routes, route])
        except ConfigurationError as error:
            raise ConfigurationError([*problems, *error.problems]) from None
        if problems:
            raise ConfigurationError(problems)
        self._settings = settings
        self._in_code.append(route)
        self._handlers[name] = handler

    def _unknown(self, key: str) -> Problem:
        """Return the problem of a keyword argument that `route` does not have."""
        at: list[str | int] = ["routes", len(self._settings.routes)]
        if key == "handler":
            return Problem(key_path([*at, key]), "the handler is the decorated function; remove this argument")
        of_source = keys_of(SourceSettings)
        options = [*of_source, *(option for option in keys_of(RouteSettings) if option not in ("from", "handler"))]
        why = unknown_key(key, [*at, "from"], Settings, options)
        return Problem(key_path([*at, "from", key] if nearest(key, options) in of_source else [*at, key]), why)


def _with_loop(platform: Platform, loop: AbstractEventLoop) -> Platform:
    """Return a platform whose handlers on asyncio run in a loop of the program."""
    return replace(platform, open_asyncio_loop=lambda: nullcontext(loop), shares_asyncio_loop=True)


def _is_cancelled(error: BaseException) -> bool:
    """Return True if the error contains `Cancelled`: the cause is then elsewhere."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
