"""`router-trio resume`: resume the durable of a route that was paused on its server."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, Parser
from router_trio.cli.configuration import load
from router_trio.cli.output import show
from router_trio.cli.pause import CANT_PAUSE, named
from router_trio.cli.stored_routes import add_route, stored_route

if TYPE_CHECKING:
    from router_trio.nats.command_link import CommandLink
    from router_trio.settings import RouteSettings


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `resume`."""
    add_route(parser)


def resume(config: Path, route: str) -> int:
    """Resume a route that is paused on the server.

    Ends a pause by router-trio pause, or by any other client, at once. It
    does nothing if the route is not paused.

    For example:

        router-trio resume router.toml orders
    """
    import trio

    settings = load(config)
    settings.require_servers()
    found = stored_route(settings, route, CANT_PAUSE, any_partitions=True)
    from router_trio.cli.over_links import over_links

    job = partial(_job, found)
    return trio.run(over_links, settings, "resume", [found.source.connection], job, lambda number: True)


async def _job(route: RouteSettings, links: Mapping[str, CommandLink]) -> int:
    from router_trio.nats.partitions import durables_of
    from router_trio.nats.pause import PausedDurable

    link = links[route.source.connection]
    stream, durables = await durables_of(link, route.source)
    infos = [await PausedDurable(link, stream, durable).resume() for durable in durables]
    waiting = f"{sum(info.num_pending for info in infos):,} messages are not delivered yet"
    show(f"route {route.name}: {named(durables)} of stream {stream!r} is not paused; {waiting}")
    return DONE
