"""`router-trio check`: report the problems of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from router_trio.cli.command_line import DONE, INVALID_CONFIGURATION, Parser
from router_trio.cli.configuration import load_with_handlers
from router_trio.errors import ConfigurationError, Problem


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `check`."""
    parser.add_configurations(required=False)


def check(configs: Sequence[Path]) -> int:
    """Validate a configuration without connecting.

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

    For example:

        router-trio check router.toml
        envsubst < router.toml.in | router-trio check -
        router-trio check base.toml routes.d/
    """
    from router_trio.settings.checks.circles import certain_circles, possible_circles

    try:
        settings = load_with_handlers(*configs)
        if circles := list(certain_circles(settings.connections, settings.routes, settings.streams)):
            raise ConfigurationError(list(map(settings.located, circles)), str(configs[0]))
    except ConfigurationError as error:
        print(error)
        return INVALID_CONFIGURATION
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
        print(line("warning", warning))
    for note in newer_servers(settings.routes, settings.streams):
        print(line("note", note))

    from router_trio.settings.guarantee import guarantee

    for index, route in enumerate(settings.routes):
        if sentence := guarantee(route, settings.router.workers):
            print(f"{place(f'routes[{index}]').partition(': ')[0]}: route {route.name}: {sentence}")
        if route.limit is not None:
            print(f"{place(f'routes[{index}].limit')}: {route.limit.sentence}")
        for number, to in enumerate(route.to):
            if to.breaker is not None:
                print(f"{place(f'routes[{index}].to[{number}].breaker')}: {to.breaker.sentence}")
    connections, routes = len(settings.connections), len(settings.routes)
    streams = f", {_counted(len(settings.streams), 'stream')}" if settings.streams else ""
    files = " ".join(map(str, configs))
    counted = f"{_counted(connections, 'connection')}, {_counted(routes, 'route')}{streams}"
    print(f"{files}: ok ({counted}), config hash {settings.content_hash}")
    return DONE


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
