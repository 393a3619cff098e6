"""Run `router-trio run` once it knows its settings.

Guarantees: the first signal lets the router drain, also if it has only begun to start; a second one cuts that short.
SIGHUP reloads the configuration, once the router is up; a signal that ends goes before a reload that is under way.
The embedded server, if there is one, outlives the router's drain and is gone afterwards, whatever happens.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from router_trio import Live
from router_trio.cli.command_line import DONE, FAILED
from router_trio.cli.last_resort import LastResort
from router_trio.cli.run.reloading import Wanted, Watch, reload_when_wanted
from router_trio.cli.run.systemd import Systemd
from router_trio.cli.signals import run_with_signals
from router_trio.events import Emit, HangupIgnored
from router_trio.router import Router, no_pages, real_network
from router_trio.router.garbage_collection import begin_collecting
from router_trio.settings import ServerURL, Settings
from router_trio.telemetry.http.status import waiting_for

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from router_trio.router import Pages


_AUTHENTICATION = ("credentials_file", "user", "password", "token", "nkey_seed_file")


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
    last_resort = LastResort(settings.router.shutdown_timeout)

    opening = False
    emit: Emit | None = None

    def begins(of_router: Emit) -> None:
        nonlocal emit
        emit = of_router
        tell_of_hangups(emit)

    def on_signal(number: int) -> None:
        if number > 1 or not opening:
            everything.cancel()
        stop.set()

    async def route() -> int:
        nonlocal opening
        live: Live | None = None
        with everything:
            async with with_server(embedded_nats, settings, load) as (used, load_used):
                observers = [systemd.hear, last_resort.hear]
                router = (
                    with_faults(used, observers, begins)
                    if fault_injection
                    else Router(used, log=True, observers=observers, pages=preceded(begins, no_pages))
                )
                opening = True
                async with router.open(stop=stop) as live, _telling(systemd, live):
                    begin_collecting()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(reload_when_wanted, live.reload, load_used, wanted, watch, early)
                        await stop.wait()
                        nursery.cancel_scope.cancel()
        if live is None:
            return FAILED if opening else DONE  # before that there was nothing to lose
        return FAILED if live.unsettled else DONE

    return await run_with_signals(route, on_signal, wanted.say, last_resort, lambda: emit)


def _telling(systemd: Systemd, live: Live) -> AbstractAsyncContextManager[None]:
    return systemd.serving(lambda: waiting_for(live, trio.current_time()), lambda: len(live.routes), lambda: True)


def with_faults(settings: Settings, observers: Sequence[Emit], begins: Callable[[Emit], None]) -> Router:
    """A router whose links meet the faults that are injected at `/faults`. See `preceded` for `begins`."""
    from router_trio.cli.run.fault_pages import fault_pages
    from router_trio.faults import Faults

    faults = Faults()
    return Router(
        settings,
        log=True,
        observers=observers,
        connect=faults.around_factory(partial(real_network, router=settings.router.name)),
        pages=preceded(begins, partial(fault_pages, faults)),
    )


def preceded(begins: Callable[[Emit], None], pages: Pages) -> Pages:
    """Return the same pages, made when `begins` was called with what tells of events: as soon as a router has that."""

    def made(emit: Emit) -> Sequence[BaseRoute]:
        begins(emit)
        return pages(emit)

    return made


def tell_of_hangups(emit: Emit) -> None:
    """Say it if SIGHUP is ignored: whoever sends it would wait for a reload in vain."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        emit(HangupIgnored(at=trio.current_time()))


# --- --embedded-nats ---


@asynccontextmanager
async def with_server(
    wanted: bool, settings: Settings, load: Callable[[], Settings]
) -> AsyncIterator[tuple[Settings, Callable[[], Settings]]]:
    """Run a server if it is wanted, and print its URL. Give settings, and what loads them, that use it.

    On the way out it waits for the end of the server.
    """
    if not wanted:
        yield settings, load
        return
    from router_trio.embedded import open_embedded_server

    async with open_embedded_server() as server:
        print(f"{server.url}\nnats-server: pid {server.pid}", flush=True)
        yield _with_servers(settings, server.url), partial(_load_with_servers, load, server.url)


def _load_with_servers(load: Callable[[], Settings], url: str) -> Settings:
    return _with_servers(load(), url)


def _with_servers(settings: Settings, url: str) -> Settings:
    """Return settings in which every connection without servers uses the one at `url`, and logs in as that says."""
    here = {"servers": [ServerURL.parse(url)], **dict.fromkeys(_AUTHENTICATION)}
    connections = {
        name: connection if connection.servers else connection.model_copy(update=here)
        for name, connection in settings.connections.items()
    }
    return settings.adapted(connections=connections)
