"""`router-trio trace`: show the path of a message through the servers and the router, without a delivery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError
from router_trio.cli.configuration import load
from router_trio.cli.explain import add_message, read_message
from router_trio.cli.output import show, show_json, to_stderr
from router_trio.errors.quotes import LONGEST_TEXT, excerpt

if TYPE_CHECKING:
    from router_trio.cli.explain import Given
    from router_trio.cli.explanation import Explanation
    from router_trio.nats.command_link import CommandLink
    from router_trio.settings import Settings


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `trace`."""
    parser.add_configurations(required=True)
    add_message(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def trace(configs: Sequence[Path], subject: str, *, header: Sequence[str], data: str, json: bool) -> int:
    r"""Show the path of a message through both systems, and deliver nothing.

    Asks the servers where a message on SUBJECT would go (message tracing,
    nats-server 2.11 or later), on each connection from which a route would
    receive it. Prints each server on the path, the streams that would
    store it and the clients that would get it; then what the router makes
    of it, as explain does; then the path of each copy from the server of
    its destination on. No message is delivered or stored anywhere. To an
    older server, which would deliver it, nothing is sent.

    No handler is called: the copies are those that the router would send
    if each handler returned the message unchanged. The user of each
    connection must be allowed to publish to the subject, and to its own
    inbox.

    The exit code is 1 if the message or a copy of it would not arrive
    everywhere, or if the path could not be found out; stderr has the
    reasons.

    For example:

        router-trio trace router.toml orders.7.created
        router-trio trace router.toml orders.7.created \
            --header region=eu --data '{"total": 150}' --json
    """
    import trio

    from router_trio.cli.explain_message import explain_message
    from router_trio.cli.message_path import check_subject, connections_for
    from router_trio.cli.over_links import over_links
    from router_trio.routing.route_plans import compile_routes

    message = read_message(subject, header, data)
    settings = load(*configs)
    settings.require_servers()
    if any(name.lower().startswith("nats-trace-") for name in message.headers):
        raise UsageError("--header: the headers Nats-Trace-... are those of the trace itself")
    plans = compile_routes(settings)
    explanation = explain_message(plans, subject, message.block, message.payload, workers=settings.router.workers)
    names = connections_for(explanation)
    if not names:
        raise UsageError("the configuration has no routes, so nothing receives a message")
    for name in names:
        if (why := check_subject(settings, name, subject)) is not None:
            raise UsageError(why)
    unreachable: dict[str, str] = {}
    job = partial(_job, settings, explanation, message, json, unreachable)
    wanted = [*names, *(one.connection for route in explanation.routes for one in route.plan.destinations)]
    return trio.run(over_links, settings, "trace", wanted, job, lambda number: True, unreachable)


async def _job(
    settings: Settings,
    explanation: Explanation,
    message: Given,
    json: bool,
    unreachable: Mapping[str, str],
    links: Mapping[str, CommandLink],
) -> int:
    from router_trio.cli.message_path import find_path

    found = await find_path(settings, explanation, message, links, unreachable)
    if json:
        show_json(found.as_json(), indent=2)
    else:
        show(*found.lines())
    for problem in found.problems:
        to_stderr(f"router-trio: {excerpt(problem, LONGEST_TEXT)}")
    return FAILED if found.problems else DONE
