"""`router-trio run`: the router itself, until a signal ends it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from router_trio.cli.command_line.parser import Parser, number
from router_trio.cli.running.launch import launch

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
    return launch(
        *configs,
        embedded_nats=embedded_nats,
        watch=watch,
        workers=workers,
        enable_fault_injection=enable_fault_injection,
    )
