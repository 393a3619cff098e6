"""What `router-trio run` does before anything runs: read the configuration, and refuse what can't be."""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

from router_trio.cli.configuration import load_with_handlers
from router_trio.errors import Problem

CONFIG = Path("router.toml")
"""Where the configuration is, unless it is said."""


def launch(
    config: Path = CONFIG,
    *more: Path,
    embedded_nats: bool = False,
    watch: bool = False,
    enable_fault_injection: bool = False,
) -> int:
    """Run a router until a signal ends it, and return the exit code: see `run`, whose parameters these are."""
    early = _note_hangups()
    watching = None
    if watch:
        from router_trio.cli.reload.watching import content_of
        from router_trio.cli.reload.watching import watch as watch_files

        look = partial(content_of, [config, *more])
        # Looked at before it is loaded: what changes in between is seen as a change.
        watching = partial(watch_files, look, look())
    load = partial(load_with_handlers, config, *more)
    settings = load()
    if not embedded_nats:
        settings.require_servers()
    elif all(connection.servers for connection in settings.connections.values()):
        settings = settings.with_ignored(
            Problem(
                "--embedded-nats",
                "has nothing to do: every connection has servers of its own, and only one without is connected to the "
                "embedded server; leave out the option, or the servers",
            )
        )
    if enable_fault_injection:
        settings.require_loopback("--enable-fault-injection lets anyone who reaches it make the router fail")
    import trio

    from router_trio.cli.serving import serve

    return trio.run(
        serve,
        load,
        settings,
        embedded_nats,
        enable_fault_injection,
        watching,
        early,
    )


def _note_hangups() -> list[int]:
    """Let SIGHUP end nothing from now on, and note it in the list that is returned: it is for who serves."""
    noted: list[int] = []
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        with suppress(ValueError):  # not in the main thread, which no signal reaches
            signal.signal(signal.SIGHUP, lambda number, _: noted.append(number))
    return noted
