"""What `router-trio run` does once it knows its settings.

Guarantees: the first signal lets the router drain, also if it has only begun to start; a second one cuts that short.
The embedded server, if there is one, outlives the router's drain and is gone afterwards, whatever happens.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import trio

from router_trio import Live
from router_trio.cli import outcome
from router_trio.cli.service.systemd import Systemd
from router_trio.cli.signals import run_with_signals
from router_trio.events import Emit
from router_trio.router import Router, real_network
from router_trio.settings import ServerURL, Settings

_AUTHENTICATION = ("credentials_file", "user", "password", "token", "nkey_seed_file")


async def serve(settings: Settings, embedded_nats: bool, fault_injection: bool = False) -> int:
    """Route until a signal comes, drain, and return the exit code. Raises `RouterError` if the router fails."""
    stop, everything, systemd = trio.Event(), trio.CancelScope(), Systemd()

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
                used = settings
                if embedded_nats:
                    from router_trio.embedded import open_embedded_server

                    server = await stack.enter_async_context(open_embedded_server())
                    print(f"{server.url}\nnats-server: pid {server.pid}", flush=True)
                    used = with_servers(settings, server.url)
                observers = [systemd.hear]
                router = (
                    with_faults(used, observers) if fault_injection else Router(used, log=True, observers=observers)
                )
                opening = True
                async with router.open(stop=stop) as live, systemd.serving(live):
                    # From here on garbage is looked for again (see `__main__`), but not in what the start has left.
                    gc.freeze()
                    gc.enable()
                    await stop.wait()
        if live is None:
            return outcome.FAILED if opening else outcome.DONE  # before that there was nothing to lose
        return outcome.FAILED if live.unsettled else outcome.DONE

    return await run_with_signals(route, on_signal)


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
