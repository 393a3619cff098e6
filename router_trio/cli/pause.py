"""`router-trio pause`: pause the durable of a route on its server."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from getpass import getuser
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, Parser, UsageError
from router_trio.cli.configuration import load
from router_trio.cli.output import show, to_stderr
from router_trio.cli.stored_routes import EXAMPLE, add_route, moment, stored_route

if TYPE_CHECKING:
    from router_trio.nats.command_link import CommandLink
    from router_trio.settings import RouteSettings

CANT_PAUSE = (
    "and a server can't pause a subscription: other members of its queue group would get the messages, or no process; "
    "stop the router, or let the route read a stream"
)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `pause`."""
    add_route(parser)
    parser.add_argument(
        "--for", dest="duration", type=_duration, metavar="DURATION", help="how long, such as 30m or 24h"
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help=f"until when, such as {EXAMPLE}")


def pause(config: Path, route: str, *, duration: timedelta | None, until: datetime | None) -> int:
    """Pause a route on the server, for every process.

    Pauses the durable consumer of the route, or those of all its
    partitions, for a duration or until a time. The server then delivers nothing to any router process, also
    after restarts, and continues by itself when the time has come.
    Messages that were delivered before are still routed and acked, and
    nothing is lost. A pause that is in force is replaced.

    Routers report the route as paused: by whom, and until when. /readyz
    answers 503 meanwhile. The server needs version 2.11.

    For example:

        router-trio pause router.toml orders --for 30m
        router-trio pause router.toml orders --until 2026-11-29T10:00:00Z
    """
    import trio

    if (duration is None) == (until is None):
        raise UsageError("pause needs either --for or --until; router-trio pause --help shows an example")
    settings = load(config)
    settings.require_servers()
    found = stored_route(settings, route, CANT_PAUSE, any_partitions=True)
    from router_trio.cli.over_links import over_links

    job = partial(_job, found, until if duration is None else duration)
    return trio.run(over_links, settings, "pause", [found.source.connection], job, lambda number: True)


async def _job(route: RouteSettings, until: datetime | timedelta | None, links: Mapping[str, CommandLink]) -> int:
    from router_trio.nats.jetstream.consumer_config import paused
    from router_trio.nats.partitions import durables_of
    from router_trio.nats.pause import PausedDurable

    link = links[route.source.connection]
    stream, durables = await durables_of(link, route.source)
    assert until is not None
    paused_last = None
    for durable in durables:
        try:
            info, denied = paused_last = await PausedDurable(link, stream, durable).pause(until, _author())
        except ValueError as error:
            raise UsageError(f"--until: {error}") from None
        until = datetime.fromisoformat(info.config.pause_until)  # the same for all of them
    assert paused_last is not None, "a route from a stream has a durable"
    info, denied = paused_last
    if denied:
        why = "this user may not change the durable, so that routers can't report who has paused it"
        to_stderr(f"router-trio: {why}: {denied}")
    show(f"route {route.name}: {named(durables)} of stream {stream!r} {paused(info)}")
    return DONE


def named(durables: Sequence[str]) -> str:
    """Return the durables of a route as a subject of a sentence, which goes on in the singular."""
    if len(durables) == 1:
        return f"the durable {durables[0]!r}"
    return f"each of the durables {durables[0]!r} to {durables[-1]!r}"


def _author() -> str:
    """Return the user and the host that run this command."""
    try:
        return f"{getuser()}@{gethostname()}"
    except (KeyError, OSError):  # the user of a container may have no name
        return gethostname()


def _duration(text: str) -> timedelta:
    from router_trio.settings.units import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    if not seconds:
        raise ArgumentTypeError("a pause must be longer than 0s")
    return timedelta(seconds=seconds)
