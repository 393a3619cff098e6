"""`router-trio run`: its arguments, and the checks before a router starts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import Parser, UsageError, directory, number
from router_trio.cli.configuration import STDIN, load_with_handlers
from router_trio.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from router_trio.cli.run.serving import OpenServer
    from router_trio.settings import Settings

MOST_WORKERS = 256
"""The limit of `[router] workers`, whose module is not imported yet."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `run`."""
    parser.add_configurations(required=False)
    parser.add_argument(
        "--embedded-nats", action="store_true", help="start a nats-server for connections without servers"
    )
    parser.add_argument(
        "--data",
        type=directory,
        metavar="DIR",
        help="keep streams, port and password of the embedded nats-server in DIR",
    )
    parser.add_argument("--watch", action="store_true", help="reload the configuration when a file changes")
    parser.add_argument(
        "--workers",
        type=number(1, MOST_WORKERS),
        metavar="N",
        help="number of processes that share the messages; overrides [router] workers",
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
    data: Path | None,
    watch: bool,
    workers: int | None,
    enable_fault_injection: bool,
) -> int:
    """Route messages until a signal arrives.

    On SIGINT, SIGTERM, SIGQUIT, SIGUSR1 or SIGUSR2 the router drains
    within shutdown_timeout and ends; a second signal cuts the drain short.
    Logs are written to stderr. The exit code is 1 if the router failed, or
    if messages were left unsettled.

    On SIGHUP, and with --watch when a file changes, the configuration is
    reloaded. Only the routes and connections that differ are drained and
    started again (ROUTER_RELOADED). A configuration with a mistake changes
    nothing (ROUTER_RELOAD_REFUSED). router-trio diff shows what a reload
    would do. Modules of new handlers are imported, but a module that is
    already imported is not loaded again. A configuration from standard
    input can't be reloaded.

    With --workers (or [router] workers) several processes route messages,
    each on its own core, under one supervisor. One HTTP address shows
    their sums, one log has all lines, and one signal stops all. A worker
    that ends unexpectedly is restarted (ROUTER_WORKER_LOST). Core routes
    then need a queue, and no route keeps the order of messages.

    --embedded-nats starts a nats-server with JetStream on a free loopback
    port, with a temporary store, and stops it at the end. Every connection
    without servers uses it. The first line of the output is its URL, with
    a new password, so that no other user of this machine can connect; the
    second line has its pid. If the server dies, it is restarted.

    With --data its streams survive the router: DIR keeps them, and a file
    named url with the same port and password for each run. Each message is
    on the disk before it is acknowledged.

    --enable-fault-injection is for rehearsals: anyone who can reach the
    HTTP server can make operations fail with POST /faults, and end that
    with DELETE /faults. It is logged as a warning, and refused unless
    telemetry.listen is a loopback address.

    For example:

        router-trio run router.toml
        router-trio run base.toml routes.d/
        router-trio run --embedded-nats
        router-trio run --embedded-nats --data /var/lib/router-trio
        router-trio run --watch router.toml
        router-trio run --workers 4 router.toml
    """
    early_hangups = _note_hangups()
    from_stdin = str(configs[0]) == STDIN
    watching = None
    if watch:
        if from_stdin:
            raise UsageError(
                "--watch has no file to watch because the configuration comes from standard input; give the path of a "
                "file, or leave out --watch"
            )
        from router_trio.cli.run.reloading import content_of, watch_files

        read = partial(content_of, configs)
        # The files are read before the configuration is loaded, so that a change in between is noticed.
        watching = partial(watch_files, read, read())
    if data is not None and not embedded_nats:
        raise UsageError("--data is the directory of the embedded nats-server; add --embedded-nats")
    load = partial(load_with_handlers, *configs, workers=workers)
    settings = load()
    if not embedded_nats:
        settings.require_servers()
    elif all(connection.servers for connection in settings.connections.values()):
        settings = settings.with_ignored(
            Problem(
                "--embedded-nats",
                "has no effect: every connection has servers, and only a connection without servers uses the embedded "
                "server; leave out the option, or the servers",
            )
        )
    if enable_fault_injection:
        settings.require_loopback(
            "--enable-fault-injection lets anyone who can reach this address make the router fail"
        )
    import trio

    open_server = _embedded_server(data) if embedded_nats else None
    load_again = _refuse_to_load_again if from_stdin else load
    if settings.router.workers > 1:
        if enable_fault_injection:
            raise UsageError("--enable-fault-injection works with one process only; add --workers 1")
        from router_trio.cli.run.supervisor import serve_workers

        return trio.run(serve_workers, load_again, settings, open_server, watching, early_hangups)
    from router_trio.cli.last_resort import run_without_threads
    from router_trio.cli.run.serving import serve

    return run_without_threads(
        serve,
        load_again,
        settings,
        open_server,
        enable_fault_injection,
        watching,
        early_hangups,
    )


def _embedded_server(data: Path | None) -> OpenServer:
    from router_trio.embedded import open_embedded_server, open_server_in

    return open_embedded_server if data is None else partial(open_server_in, data.absolute())


def _refuse_to_load_again() -> Settings:
    """Raise ConfigurationError: standard input was read to its end at the start."""
    detail = (
        "a configuration from standard input can't be reloaded; restart the router with the new one, or run it with "
        "the path of a file"
    )
    raise ConfigurationError([Problem("", detail)], STDIN)


def _note_hangups() -> list[int]:
    """Keep SIGHUP from ending the process, and return a list that records each one until the router handles them."""
    import signal  # here, since `--help` imports this module, and `signal` is slow to import

    noted: list[int] = []
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        with suppress(ValueError):  # in another thread than the main one, which receives no signals
            signal.signal(signal.SIGHUP, lambda number, _: noted.append(number))
    return noted
