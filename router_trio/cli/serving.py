"""What `router-trio run` does once it knows its settings.

Guarantees: the first signal lets the router drain, also if it has only begun to start; a second one cuts that short.
SIGHUP reloads the configuration, once the router is up; a signal that ends goes before a reload that is under way.
The embedded server, if there is one, outlives the router's drain and is gone afterwards, whatever happens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial

import trio

from router_trio import Live
from router_trio.cli import outcome
from router_trio.cli.service.systemd import Systemd
from router_trio.cli.signals import run_with_signals
from router_trio.errors import ConfigurationError
from router_trio.events import Emit
from router_trio.router import Router, real_network
from router_trio.router.garbage_collection import begin_collecting
from router_trio.settings import ServerURL, Settings
from router_trio.telemetry.http.status import waiting_for

_AUTHENTICATION = ("credentials_file", "user", "password", "token", "nkey_seed_file")


class Wanted:
    """That a reload is wanted, said at any time: once, however often it was said since the last one began."""

    def __init__(self) -> None:
        self._said = trio.Event()

    def say(self) -> None:
        """Reload, as soon as may be."""
        self._said.set()

    async def until_said(self) -> None:
        """Return when it was said, and forget that."""
        await self._said.wait()
        self._said = trio.Event()


Watch = Callable[[Callable[[], None]], Awaitable[None]]
"""Calls what it is given each time that the configuration has changed, until cancelled."""


async def serve(
    load: Callable[[], Settings],
    settings: Settings,
    embedded_nats: bool,
    fault_injection: bool = False,
    watch: Watch | None = None,
    early: Sequence[int] = (),
) -> int:
    """Route until a signal comes, drain, and return the exit code. Raises `RouterError` if the router fails.

    On SIGHUP, and when `watch` says so, the settings are loaded again by `load`, which may block. `early` are the
    SIGHUPs that came before this was called.
    """
    stop, everything, systemd, wanted = trio.Event(), trio.CancelScope(), Systemd(), Wanted()

    opening = False

    def on_signal(number: int) -> None:
        if number > 1 or not opening:
            everything.cancel()
        stop.set()

    async def route() -> int:
        nonlocal opening
        live: Live | None = None
        with everything:
            async with AsyncExitStack() as stack:
                used, load_used = settings, load
                if embedded_nats:
                    used, load_used = await with_embedded_server(stack, settings, load)
                observers = [systemd.hear]
                router = (
                    with_faults(used, observers) if fault_injection else Router(used, log=True, observers=observers)
                )
                opening = True
                async with router.open(stop=stop) as live, _telling(systemd, live):
                    begin_collecting()
                    if early:
                        wanted.say()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_reload_when_wanted, live, load_used, wanted)
                        if watch is not None:
                            nursery.start_soon(watch, wanted.say)
                        await stop.wait()
                        nursery.cancel_scope.cancel()
        if live is None:
            return outcome.FAILED if opening else outcome.DONE  # before that there was nothing to lose
        return outcome.FAILED if live.unsettled else outcome.DONE

    return await run_with_signals(route, on_signal, wanted.say)


async def _reload_when_wanted(live: Live, load: Callable[[], Settings], wanted: Wanted) -> None:
    while True:
        await wanted.until_said()
        with suppress(ConfigurationError):  # it is logged, and nothing has changed
            await live.reload(load)


def _telling(systemd: Systemd, live: Live) -> AbstractAsyncContextManager[None]:
    return systemd.serving(lambda: waiting_for(live, trio.current_time()), lambda: len(live.routes), lambda: True)


async def with_embedded_server(
    stack: AsyncExitStack, settings: Settings, load: Callable[[], Settings]
) -> tuple[Settings, Callable[[], Settings]]:
    """Run a server of our own in `stack`, and print its URL. Return settings, and what loads them, that use it."""
    from router_trio.embedded import open_embedded_server

    server = await stack.enter_async_context(open_embedded_server())
    print(f"{server.url}\nnats-server: pid {server.pid}", flush=True)
    return with_servers(settings, server.url), partial(_load_with_servers, load, server.url)


def _load_with_servers(load: Callable[[], Settings], url: str) -> Settings:
    return with_servers(load(), url)


def with_faults(settings: Settings, observers: Sequence[Emit] = ()) -> Router:
    """A router whose links meet the faults that are injected at `/faults`."""
    from router_trio.cli.fault_pages import fault_pages
    from router_trio.faults import Faults

    faults = Faults()
    return Router(
        settings,
        log=True,
        observers=observers,
        connect=faults.around_factory(real_network),
        pages=partial(fault_pages, faults),
    )


def with_servers(settings: Settings, url: str) -> Settings:
    """Return settings in which every connection without servers uses the one at `url`, and logs in as that says."""
    here = {"servers": [ServerURL.parse(url)], **dict.fromkeys(_AUTHENTICATION)}
    connections = {
        name: connection if connection.servers else connection.model_copy(update=here)
        for name, connection in settings.connections.items()
    }
    return settings.model_copy(update={"connections": connections})
