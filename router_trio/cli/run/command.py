"""`router-trio run`: the router itself, until a signal ends it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import Parser, UsageError, number
from router_trio.cli.configuration import STDIN, load_with_handlers
from router_trio.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from router_trio.settings import Settings

MOST_WORKERS = 256
"""As `[router] workers` has it, which is not imported yet."""


def add_arguments(parser: Parser) -> None:
    """Add what `run` takes."""
    parser.add_configurations(required=False)
    parser.add_argument(
        "--embedded-nats", action="store_true", help="use a nats-server of its own, and print its URL and pid"
    )
    parser.add_argument("--watch", action="store_true", help="reload the configuration when its file changes")
    parser.add_argument(
        "--workers",
        type=number(1, MOST_WORKERS),
        metavar="N",
        help="processes that share the messages, in place of [router] workers",
    )
    parser.add_argument(
        "--enable-fault-injection",
        action="store_true",
        help="inject faults on request at /faults; not for production",
    )


def run(
    configs: Sequence[Path],
    *,
    embedded_nats: bool,
    watch: bool,
    workers: int | None,
    enable_fault_injection: bool,
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
    that is imported already stays as it is. What came from standard input
    can't be reloaded.

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
    from_stdin = str(configs[0]) == STDIN
    watching = None
    if watch:
        if from_stdin:
            raise UsageError(
                "--watch has no file to look at, since the configuration comes from standard input; give the path of "
                "a file, or leave out --watch"
            )
        from router_trio.cli.run.reloading import content_of, watch_files

        look = partial(content_of, configs)
        # Looked at before it is loaded: what changes in between is seen as a change.
        watching = partial(watch_files, look, look())
    load = partial(load_with_handlers, *configs, workers=workers)
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

    again = _refuse_to_load_again if from_stdin else load
    if settings.router.workers > 1:
        if enable_fault_injection:
            raise UsageError("--enable-fault-injection is for one process: give --workers 1 with it")
        from router_trio.cli.run.supervisor import serve_workers

        return trio.run(serve_workers, again, settings, embedded_nats, watching, early)
    from router_trio.cli.last_resort import end_without_threads
    from router_trio.cli.run.serving import serve

    code = trio.run(
        serve,
        again,
        settings,
        embedded_nats,
        enable_fault_injection,
        watching,
        early,
    )
    return end_without_threads(code)


def _refuse_to_load_again() -> Settings:
    """Raise ConfigurationError: what standard input held was read at the start, and there is no more."""
    told = (
        "settings from standard input can't be read again; end the router and run it with the new ones, or run it with "
        "the path of a file, which a reload reads"
    )
    raise ConfigurationError([Problem("", told)], STDIN)


def _note_hangups() -> list[int]:
    """Let SIGHUP end nothing from now on, and note it in the list that is returned: it is for who serves."""
    import signal  # not for --help: it takes a while to import

    noted: list[int] = []
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        with suppress(ValueError):  # not in the main thread, which no signal reaches
            signal.signal(signal.SIGHUP, lambda number, _: noted.append(number))
    return noted
