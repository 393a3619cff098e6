"""`router-trio position`: where a consumer of the source of a route continues in the copy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError
from router_trio.cli.configuration import load
from router_trio.cli.output import show, show_json, to_stderr
from router_trio.cli.stored_routes import add_route, stored_route

if TYPE_CHECKING:
    from router_trio.errors import LinkError, SourceError
    from router_trio.nats.command_link import CommandLink
    from router_trio.position.standing import Standing
    from router_trio.settings import RouteSettings, Settings


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `position`."""
    add_route(parser)
    parser.add_argument("--consumer", required=True, metavar="NAME", help="a consumer of the stream that it reads")
    parser.add_argument("--apply", action="store_true", help="create the durable there, in the stream of the copy")
    parser.add_argument("--json", action="store_true", help="print JSON")


def position(config: Path, route: str, *, consumer: str, apply: bool, json: bool) -> int:
    """Show where a consumer of the source of a route continues in the copy.

    Prints the sequence in the destination's stream from which on no
    unacked message is skipped, how many copies from there on repeat an
    acked message, and how many repeat another copy. The server does not
    report which messages above the ack floor are acked, so these are
    repeated. Stop the consumer first.

    If the source can't be reached, or no longer has the stream, the last
    checkpoint is used that a router with [[positions]] has saved at the
    destination.

    Nothing is changed. With --apply, a durable with the name and the
    configuration of the consumer is created at that sequence. Its filter
    subjects are mapped as the route maps subjects.

    The exit code is 1 if there is no answer, or if a message above the
    ack floor should have a copy and has none.

    For example:

        router-trio position router.toml copy --consumer billing
        router-trio position router.toml copy --consumer billing --apply
    """
    import trio

    settings = load(config)
    settings.require_servers()
    found = stored_route(settings, route, "so there are no positions; it needs a stream")
    _check_consumer(consumer)
    from router_trio.cli.over_links import over_links
    from router_trio.position.finder import copies_on

    job = partial(_job, settings, found, consumer, apply, json)
    return trio.run(over_links, settings, "position", copies_on(found), job, lambda number: True)


async def _job(
    settings: Settings,
    route: RouteSettings,
    consumer: str,
    apply: bool,
    json: bool,
    links: Mapping[str, CommandLink],
) -> int:
    from router_trio.errors import LinkError, SourceError, reasons
    from router_trio.nats.command_link import open_links
    from router_trio.position.finder import Finder

    async with AsyncExitStack() as stack:
        source, checkpoint = route.source.connection, None
        if source not in links:
            try:
                links = {**links, **await stack.enter_async_context(open_links(settings, "position", [source]))}
            except LinkError as error:
                checkpoint = await _checkpoint(settings, route, consumer, links, error)
        finder = Finder(settings, route, links)
        try:
            standing = checkpoint or await finder.standing(consumer)
        except SourceError as error:
            # A server without the stream, or without a leader for it: the source is as gone as without the server.
            gone = (reasons.STREAM_NOT_FOUND, reasons.JETSTREAM, reasons.NO_JETSTREAM, reasons.TIMEOUT)
            if error.reason not in gone:
                raise
            standing = checkpoint = await _checkpoint(settings, route, consumer, links, error)
        answer = await finder.find(standing, from_checkpoint=checkpoint is not None)
        if apply:
            await finder.apply(answer)
    if json:
        show_json(answer.as_json())
    else:
        show(*answer.lines())
    return DONE if answer.clean else FAILED


async def _checkpoint(
    settings: Settings,
    route: RouteSettings,
    consumer: str,
    links: Mapping[str, CommandLink],
    error: LinkError | SourceError,
) -> Standing:
    """Return the last checkpoint of the consumer. Raises an error like `error`, with both reasons, if there is none."""
    from router_trio.errors import LinkError, SourceError
    from router_trio.position.checkpoints import Bucket

    why = f"[[positions]] has no consumer {consumer} of route {route.name}"
    for one in settings.positions:
        if (one.route, one.consumer) == (route.name, consumer):
            try:
                standing = await Bucket(links[route.to[0].connection], one).load()
            except SourceError as wrong:
                why = str(wrong)
                break
            if standing is not None:
                to_stderr(f"router-trio: {error}; using the checkpoint of {standing.at}")
                return standing
            why = f"bucket {one.bucket} has none of consumer {consumer}"
    kind = LinkError if isinstance(error, LinkError) else SourceError
    raise kind(f"{error}; and no checkpoint can be used: {why}", reason=error.reason) from error


def _check_consumer(name: str) -> None:
    """Refuse a name that no consumer has. A server would not answer, or close the connection."""
    from router_trio.settings.patterns import check_name

    if not name:
        raise UsageError("--consumer: the name is empty")
    for problem in check_name("--consumer", name):
        raise UsageError(f"{problem.path}: {problem.message}")
    if not name.isprintable():
        raise UsageError(f"--consumer: {name!r} is not printable")
