"""Run one router in this process, for `router-trio run`.

Guarantees: the first signal drains the router, even while it is starting; a second one ends the drain early. SIGHUP
reloads the configuration once the router is open; a signal to stop interrupts a reload. The embedded server, if there
is one, runs until the router has drained, and is always stopped afterwards.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import trio

from router_trio import Live
from router_trio.cli.command_line import DONE, FAILED
from router_trio.cli.last_resort import LastResort
from router_trio.cli.output import show
from router_trio.cli.run.reloading import ReloadRequest, Watch, reload_on_request
from router_trio.cli.run.systemd import Systemd
from router_trio.cli.signals import run_with_signals
from router_trio.events import Emit, Event, HangupIgnored, InterruptIgnored
from router_trio.router import Router, no_pages, real_network
from router_trio.router.garbage_collection import begin_collecting
from router_trio.settings import ServerURL, Settings
from router_trio.telemetry.http.status import waiting_for

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from router_trio.embedded import EmbeddedServer
    from router_trio.router import Pages

OpenServer: TypeAlias = "Callable[[], AbstractAsyncContextManager[EmbeddedServer]]"
"""Opens the embedded server, which runs until the context manager is left."""

_AUTHENTICATION = ("credentials_file", "user", "password", "token", "nkey_seed_file", "proxy")


async def serve(
    load: Callable[[], Settings],
    settings: Settings,
    open_server: OpenServer | None,
    fault_injection: bool = False,
    watch: Watch | None = None,
    early_hangups: Sequence[int] = (),
) -> int:
    """Route until a signal arrives, drain, and return the exit code. Raises `RouterError` if the router fails.

    On SIGHUP, and when `watch` reports a change, `load`, which may block, reads the settings again. `early_hangups` has
    the SIGHUPs that were received before this call.
    """
    stop, everything, systemd, request = trio.Event(), trio.CancelScope(), Systemd(), ReloadRequest()
    last_resort = LastResort(settings.router.shutdown_timeout)

    opening = False
    emit: Emit | None = None

    def on_open(emit_event: Emit) -> None:
        nonlocal emit
        emit = emit_event
        report_ignored_signals(emit)

    def emit_once_open(event: Event) -> None:
        if emit is not None:
            emit(event)

    def on_signal(number: int) -> None:
        if number > 1 or not opening:
            everything.cancel()
        stop.set()

    async def route() -> int:
        nonlocal opening
        live: Live | None = None
        with everything:
            async with with_server(open_server, settings, load, emit_once_open) as (used, load_used):
                observers = [systemd.observe, last_resort.observe]
                router = (
                    with_faults(used, observers, on_open)
                    if fault_injection
                    else Router(used, log=True, observers=observers, pages=pages_after(on_open, no_pages))
                )
                opening = True
                async with router.open(stop=stop) as live, _notifying(systemd, live):
                    begin_collecting()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(reload_on_request, live.reload, load_used, request, watch, early_hangups)
                        await stop.wait()
                        nursery.cancel_scope.cancel()
        if live is None:
            return FAILED if opening else DONE  # before that, the router had nothing to lose
        return FAILED if live.unsettled else DONE

    return await run_with_signals(route, on_signal, request.set, last_resort, lambda: emit)


def _notifying(systemd: Systemd, live: Live) -> AbstractAsyncContextManager[None]:
    return systemd.serving(lambda: waiting_for(live, trio.current_time()), lambda: len(live.routes), lambda: True)


def with_faults(settings: Settings, observers: Sequence[Emit], on_open: Callable[[Emit], None]) -> Router:
    """Return a router whose links apply the faults that are injected at `/faults`. See `pages_after` for `on_open`."""
    from router_trio.cli.run.fault_pages import fault_pages
    from router_trio.faults import Faults

    faults = Faults()
    return Router(
        settings,
        log=True,
        observers=observers,
        connect=faults.around_factory(partial(real_network, router=settings.router.name)),
        pages=pages_after(on_open, partial(fault_pages, faults)),
    )


def pages_after(on_open: Callable[[Emit], None], pages: Pages) -> Pages:
    """Return `pages`, but first call `on_open` with the function that emits events, as soon as the router has it."""

    def made(emit: Emit) -> Sequence[BaseRoute]:
        on_open(emit)
        return pages(emit)

    return made


def report_ignored_signals(emit: Emit) -> None:
    """Emit an event if SIGHUP is ignored, whose sender would expect a reload, and one if SIGINT is."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        emit(HangupIgnored(at=trio.current_time()))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        emit(InterruptIgnored(at=trio.current_time()))


# --- --embedded-nats ---


@asynccontextmanager
async def with_server(
    open_server: OpenServer | None, settings: Settings, load: Callable[[], Settings], emit: Emit
) -> AsyncIterator[tuple[Settings, Callable[[], Settings]]]:
    """Open a server, and print its URL and pid. Yield settings, and their loader, that use it.

    Without `open_server` the settings stay as they are. The server is restarted if it ends by itself. On exit it is
    stopped, and its end awaited.
    """
    if open_server is None:
        yield settings, load
        return
    failure: Exception | None = None
    async with open_server() as server:
        show(server.url, f"nats-server: pid {server.pid}", flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.keep_running, emit)
            try:
                yield _with_servers(settings, server.url), partial(_load_with_servers, load, server.url)
            except Exception as error:
                failure = error  # raised here, the nursery would wrap it in an exception group
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _load_with_servers(load: Callable[[], Settings], url: str) -> Settings:
    return _with_servers(load(), url)


def _with_servers(settings: Settings, url: str) -> Settings:
    """Return settings in which every connection without servers uses the server and the credentials of `url`."""
    here = {"servers": [ServerURL.parse(url)], **dict.fromkeys(_AUTHENTICATION)}
    connections = {
        name: connection if connection.servers else connection.model_copy(update=here)
        for name, connection in settings.connections.items()
    }
    return settings.adapted(connections=connections)
