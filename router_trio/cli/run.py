"""`router-trio run`: the router itself, until a signal ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from router_trio.cli.configuration import load_with_handlers
from router_trio.cli.outcome import UsageError
from router_trio.errors import Problem

if TYPE_CHECKING:
    from router_trio.settings import Settings

MOST_WORKERS = 256
"""As `[router] workers` has it, which is not imported yet."""


def run(
    config: Annotated[Path, Parameter(help="The configuration, a TOML file or a folder of them; - is stdin.")] = Path(
        "router.toml"
    ),
    /,
    *more: Annotated[Path, Parameter(help="More files and folders, which make one configuration.", show_default=False)],
    embedded_nats: Annotated[
        bool,
        Parameter(
            show_default=False,
            help="Use a nats-server of its own, and print its URL and pid.",
        ),
    ] = False,
    watch: Annotated[
        bool,
        Parameter(
            show_default=False,
            help="Reload the configuration when its file changes.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        Parameter(
            show_default=False,
            help="Processes that share the messages, in place of [router] workers.",
            validator=Number(gte=1, lte=MOST_WORKERS),
        ),
    ] = None,
    enable_fault_injection: Annotated[
        bool,
        Parameter(
            show_default=False,
            help="Inject faults on request at /faults. Not for production.",
        ),
    ] = False,
) -> int:
    """Route messages until a signal arrives.

    On SIGINT, SIGTERM, SIGQUIT, SIGUSR1 or SIGUSR2 it drains within
    shutdown_timeout; a second signal cuts that short. Logs go to stderr.
    Exits with 1 if it failed, or if messages were left unsettled.

    On SIGHUP, and with --watch when the file changes, it reloads the
    configuration: only what differs is stopped, drained and started again
    (ROUTER_RELOADED), and a configuration with a mistake changes nothing
    (ROUTER_RELOAD_REFUSED). router-trio diff shows what a reload would do.
    Handlers are imported if their modules are new; the code of a module
    that is imported already stays as it is.

    With --workers (or [router] workers) several processes route, each on
    a core of its own, under one supervisor: one HTTP address that sums
    over them, one log, one signal for all. A worker that ends by itself
    is started again (ROUTER_WORKER_LOST). Core routes need a queue then,
    and order is kept by none of the routes.

    --embedded-nats starts a nats-server with JetStream on a free loopback
    port, with a temporary store. Every connection without servers uses it,
    and it is stopped at the end. Its URL, the first line of the output, has
    a new password, so that no other user of this machine can connect.

    --enable-fault-injection is for rehearsals: anyone who reaches the HTTP
    side can make operations fail by POST to /faults, and end that by
    DELETE. It is logged as a warning, and refused unless telemetry.listen
    is on the loopback.

    For example:

        router-trio run router.toml
        router-trio run base.toml routes.d/
        router-trio run --embedded-nats
        router-trio run --watch router.toml
        router-trio run --workers 4 router.toml
    """
    early = _note_hangups()
    watching = None
    if watch:
        from router_trio.cli.reload.watching import content_of
        from router_trio.cli.reload.watching import watch as watch_files

        look = partial(content_of, [config, *more])
        # Looked at before it is loaded: what changes in between is seen as a change.
        watching = partial(watch_files, look, look())
    load = partial(load_with_handlers, config, *more)
    if workers is not None:
        load = partial(_load_for_workers, load, workers)
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

    if settings.router.workers > 1:
        if enable_fault_injection:
            raise UsageError("--enable-fault-injection is for one process: give --workers 1 with it")
        from router_trio.cli.workers.serving import serve_workers

        return trio.run(serve_workers, load, settings, embedded_nats, watching, early)
    from router_trio.cli.serving import serve

    return trio.run(serve, load, settings, embedded_nats, enable_fault_injection, watching, early)


def _load_for_workers(load: Callable[[], Settings], workers: int) -> Settings:
    return load().with_workers(workers)


def _note_hangups() -> list[int]:
    """Let SIGHUP end nothing from now on, and note it in the list that is returned: it is for who serves."""
    noted: list[int] = []
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        with suppress(ValueError):  # not in the main thread, which no signal reaches
            signal.signal(signal.SIGHUP, lambda number, _: noted.append(number))
    return noted
