"""`router-trio run`: the router itself, until a signal ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from router_trio.cli.configuration import load_with_handlers
from router_trio.errors import Problem


def run(
    config: Annotated[Path, Parameter(help="The configuration, a TOML file; - reads standard input.")] = Path(
        "router.toml"
    ),
    /,
    *,
    embedded_nats: Annotated[
        bool,
        Parameter(
            show_default=False,
            help="Use a nats-server of its own, and print its URL.",
        ),
    ] = False,
    enable_fault_injection: Annotated[
        bool,
        Parameter(
            show_default=False,
            help="Inject faults on request at /faults. Not for production.",
        ),
    ] = False,
) -> int:
    """Route messages until a signal arrives.

    On SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 or SIGUSR2 it drains within
    shutdown_timeout; a second signal cuts that short. Logs go to stderr.
    Exits with 1 if it failed, or if messages were left unsettled.

    --embedded-nats starts a nats-server with JetStream on a free loopback
    port, with a temporary store. Every connection without servers uses it,
    and it is stopped at the end. Its URL has a new password, so that no
    other user of this machine can connect.

    --enable-fault-injection is for rehearsals: anyone who reaches the HTTP
    side can make operations fail by POST to /faults, and end that by
    DELETE. It is logged as a warning, and refused unless telemetry.listen
    is on the loopback.

    For example:

        router-trio run router.toml
        router-trio run --embedded-nats
    """
    settings = load_with_handlers(config)
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

    return trio.run(serve, settings, embedded_nats, enable_fault_injection)
