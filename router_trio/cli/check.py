"""`router-trio check`: report the problems of a configuration."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.check_online import check_servers, print_problems
from router_trio.cli.command_line import DONE, INVALID_CONFIGURATION, Parser, UsageError
from router_trio.cli.configuration import load_with_handlers
from router_trio.cli.output import show
from router_trio.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from router_trio.settings import Settings


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `check`."""
    parser.add_configurations(required=False)
    parser.add_argument("--online", action="store_true", help="also ask the servers; nothing is changed or published")
    parser.add_argument(
        "--outage", type=_duration, metavar="DURATION", help="with --online, the longest planned outage, such as 1h"
    )
    parser.add_argument("--json", action="store_true", help="with --online, print JSON")


def check(configs: Sequence[Path], *, online: bool = False, outage: float | None = None, json: bool = False) -> int:
    """Validate a configuration; with --online also against its servers.

    If the configuration is invalid, the exit code is 78, and each problem
    is printed on one line, FILE: key.path: what is wrong (the line, and
    the name of the route), followed by the position of a mistake in an
    expression.

    If it is valid, these lines are printed, each with its FILE: key.path:

      - a warning for each setting that works but is probably a mistake;
      - a note for each key that needs a nats-server newer than 2.10;
      - for each route with a retry, dead letters, a key, a concurrency or
        a thread, what it guarantees about order, about calls of its
        handler and about messages that fail;
      - what each limit and each breaker does;
      - "ok", and the hash of the configuration as /status shows it.

    Environment variables ROUTER_TRIO_... are applied, and handlers are
    imported.

    Without --online it does not connect. With --online the command logs
    in with the router's credentials, and prints what would fail, lose or
    double there: each finding with an error, a warning or a note, and the
    cure. Nothing is published, delivered or changed. --outage compares
    duplicate windows and ages with the longest planned outage. The exit
    code is then 78 if a finding is worse than a note, and 1 if a server
    could not be asked.

    For example:

        router-trio check router.toml
        router-trio check router.toml --online --outage 1h
        envsubst < router.toml.in | router-trio check -
        router-trio check base.toml routes.d/
    """
    if not online and (json or outage is not None):
        raise UsageError(f"{'--json' if json else '--outage'} can only be used with --online")
    from router_trio.settings.checks.circles import certain_circles

    try:
        settings = load_with_handlers(*configs)
        if circles := list(certain_circles(settings.connections, settings.routes, settings.streams)):
            raise ConfigurationError(list(map(settings.located, circles)), str(configs[0]))
    except ConfigurationError as error:
        if json:
            print_problems(error)
        else:
            show(*str(error).split("\n"))
        return INVALID_CONFIGURATION
    if not json:
        _print_offline(settings, configs)
    return check_servers(settings, outage, json) if online else DONE


def _duration(text: str) -> float:
    from router_trio.settings.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _print_offline(settings: Settings, configs: Sequence[Path]) -> None:
    """Print what is known of a valid configuration without its servers."""
    from router_trio.settings.checks.circles import possible_circles
    from router_trio.settings.checks.servers import newer_servers
    from router_trio.settings.checks.warnings import warnings

    def place(path: str) -> str:
        found = settings.located(Problem(path, ""))
        return f"{found.source or configs[0]}: {found.path}"

    def line(kind: str, problem: Problem) -> str:
        return f"{place(problem.path)}: {kind}: {settings.located(problem).with_place}"

    for warning in (
        *settings.without_effect,
        *warnings(settings.connections, settings.routes, settings.streams, settings.telemetry.route_metrics),
        *possible_circles(settings.connections, settings.routes, settings.streams),
    ):
        show(line("warning", warning))
    for note in newer_servers(settings.routes, settings.streams):
        show(line("note", note))

    from router_trio.settings.guarantee import guarantee

    for index, route in enumerate(settings.routes):
        if sentence := guarantee(route, settings.router.workers):
            show(f"{place(f'routes[{index}]').partition(': ')[0]}: route {route.name}: {sentence}")
        if route.limit is not None:
            show(f"{place(f'routes[{index}].limit')}: {route.limit.sentence}")
        for number, to in enumerate(route.to):
            if to.breaker is not None:
                show(f"{place(f'routes[{index}].to[{number}].breaker')}: {to.breaker.sentence}")
    connections, routes = len(settings.connections), len(settings.routes)
    streams = f", {_counted(len(settings.streams), 'stream')}" if settings.streams else ""
    files = " ".join(map(str, configs))
    counted = f"{_counted(connections, 'connection')}, {_counted(routes, 'route')}{streams}"
    show(f"{files}: ok ({counted}), config hash {settings.content_hash}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
