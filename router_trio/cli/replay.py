"""`router-trio replay`: send a range of the source of a route through the route again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError
from router_trio.cli.configuration import load
from router_trio.cli.output import show, to_stderr
from router_trio.cli.progress import progress_bar
from router_trio.cli.stored_routes import Bound, add_range, add_route, condition_of, range_of, stored_route
from router_trio.errors import RouterError
from router_trio.errors.quotes import excerpt

if TYPE_CHECKING:
    from router_trio.audit.audit import Range
    from router_trio.expressions.expression import Expression
    from router_trio.nats.command_link import CommandLink
    from router_trio.routing.route_plans import Handler
    from router_trio.settings import RouteSettings, Settings

MOST_REPORTED = 20
"""Largest number of messages whose failures are printed; further ones are only counted."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `replay`."""
    add_route(parser)
    add_range(parser)
    parser.add_argument("--where", metavar="EXPR", help="only messages for which this expression is true")
    parser.add_argument("--new-ids", action="store_true", help="give copies new ids, so that they are stored again")
    parser.add_argument("--dry-run", action="store_true", help="send nothing, and print what would be sent")


def replay(
    config: Path,
    route: str,
    *,
    start: Bound | None,
    end: Bound | None,
    where: str | None,
    new_ids: bool,
    dry_run: bool,
) -> int:
    r"""Send a range of messages through a route again.

    Reads the source stream from --from to --to, by default to the last
    message that the route has settled, and sends each message through the
    handler, expressions and destinations of the route, in the order of the
    stream and at the rate of its limit. The durable of the route does not
    move, and a router can run meanwhile.

    Copies have the ids that they had: a stream that still has the id in
    its duplicate window does not store the copy again. With --new-ids it
    does. --where takes an expression, as in a route.

    Messages that fail in the route again are reported, and the others
    continue. The replay ends when a destination refuses a copy, with the
    --from that continues it: nothing behind it may pass it. The exit code
    is 1 if a message failed or was refused.

    For example:

        router-trio replay router.toml orders --from 120000 --to 130000
        router-trio replay router.toml orders --from 2026-11-29T10:00:00Z \
            --where 'body.total > 100' --dry-run
    """
    import trio

    if start is None:
        raise UsageError("replay needs --from; router-trio replay --help shows an example")
    settings = load(config)
    settings.require_servers()
    found = stored_route(settings, route, "which keeps no messages to replay; it needs a stream")
    from router_trio.cli.configuration import handlers_of
    from router_trio.cli.over_links import over_links

    condition = condition_of(where)
    handlers, runtime = handlers_of(settings, found)
    names = dict.fromkeys([found.source.connection, *(to.connection for to in found.to)])
    replay = partial(_job, settings, found, handlers, range_of(start, end), condition, new_ids, dry_run)

    calls = bool(handlers) and not dry_run

    async def job(links: Mapping[str, CommandLink]) -> int:
        async with runtime.opened(settings.router) if calls else nullcontext():
            return await replay(links)

    return trio.run(over_links, settings, "replay", names, job, lambda number: True)


async def _job(
    settings: Settings,
    route: RouteSettings,
    handlers: dict[str, Handler],
    wanted: Range,
    where: Expression | None,
    new_ids: bool,
    dry_run: bool,
    links: Mapping[str, CommandLink],
) -> int:
    import trio

    from router_trio.audit.replay import Replay

    failed = 0

    def report(sequence: int, why: str) -> None:
        nonlocal failed
        failed += 1
        if failed <= MOST_REPORTED:
            to_stderr(f"router-trio: message {sequence}: {excerpt(why, 500)}")

    with progress_bar("replaying") as progress:
        one = Replay(
            settings,
            route,
            links,
            handlers,
            where=where,
            new_ids=new_ids,
            dry_run=dry_run,
            progress=progress,
            report=report,
        )
        try:
            await one.run(wanted)
        except (trio.Cancelled, RouterError):
            to_stderr(f"router-trio: {one.how_far()}")
            raise
        finally:
            if failed > MOST_REPORTED:
                to_stderr(f"router-trio: and {failed - MOST_REPORTED} more")
            if one.first:
                show(f"route {route.name}{one.summary()}")
    return FAILED if failed else DONE
