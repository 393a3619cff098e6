"""`router-trio diff`: show what a reload would change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, Parser, UsageError, configuration, number
from router_trio.cli.configuration import STDIN, load, load_with_handlers
from router_trio.cli.output import show

if TYPE_CHECKING:
    from router_trio.nats.command_link import CommandLink
    from router_trio.settings import RouteSettings, Settings
    from router_trio.settings.reload.difference import Change, Difference, Names

MAX_LAST = 100_000
"""Messages that can be compared at a time: a line of text is kept for each."""

_NOTHING_LEFT: Mapping[str, Sequence[str]] = {}


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `diff`."""
    parser.add_argument("old", type=configuration, metavar="OLD", help="the running configuration, a TOML file")
    parser.add_argument("new", type=configuration, metavar="NEW", help="the new configuration, a TOML file")
    parser.add_argument(
        "route", nargs="?", metavar="ROUTE", help="with --last, the name of a route that reads a stream"
    )
    parser.add_argument(
        "--last", type=number(1, MAX_LAST), metavar="N", help="compare what both make of the last N messages of ROUTE"
    )


def diff(old: Path, new: Path, *, route: str | None = None, last: int | None = None) -> int:
    """Show what a reload from one configuration to another would do.

    Prints one line for each connection, route and stream: added, removed,
    changed or unchanged. Below a changed one, each changed key is listed
    with its old and its new value; credentials are never shown. Keys that
    a reload does not apply are marked "(needs a restart)". Environment
    variables ROUTER_TRIO_... apply to both configurations, and the
    handlers of both are imported.

    With --last N ROUTE, reads the last N messages of the route's source
    stream, runs each through the old and the new configuration of the
    route, and prints what would change: how many would be routed, filtered
    or fail, and which copies would differ. Handlers are left out, and
    nothing is published.

    For example:

        router-trio diff /etc/router-trio/router.toml router.toml
        router-trio diff old.toml new.toml --last 1000 orders
    """
    if str(old) == str(new) == STDIN:
        raise UsageError("OLD and NEW can't both be -, since standard input is read once")
    if (route is None) != (last is None):
        raise UsageError("--last N and ROUTE can only be used together, as in diff OLD NEW --last 1000 ROUTE")
    if route is not None and last is not None:
        return _try(load(old), load(new), route, last)
    before, after = load_with_handlers(old), load_with_handlers(new)
    from router_trio.settings.reload.difference import difference

    for line in lines(difference(before, after)):
        show(line)
    return DONE


def _try(old: Settings, new: Settings, name: str, last: int) -> int:
    """Print what the last messages of the source of a route would become in both configurations."""
    from functools import partial

    import trio

    from router_trio.cli.over_links import over_links

    before, after = _route(old, name), _route(new, name)
    # The configuration that is in force logs in.
    settings, route = (old, before) if before is not None else (new, after)
    if route is None:
        from router_trio.settings.problems import suggestion

        known = [one.name for one in (*old.routes, *new.routes)]
        raise UsageError(f"neither configuration has a route {name!r}; {suggestion(name, known)}")
    if before is not None and after is not None and _source(before) != _source(after):
        reads = [f"{connection}:{stream}" for connection, stream in (_source(before), _source(after))]
        raise UsageError(f"route {name} reads {reads[0]} in OLD and {reads[1]} in NEW, so no messages are read by both")
    settings.require_servers()
    job = partial(_job, (old, before), (new, after), last)
    return trio.run(over_links, settings, "diff", [route.source.connection], job, lambda number: True)


async def _job(
    old: tuple[Settings, RouteSettings | None],
    new: tuple[Settings, RouteSettings | None],
    last: int,
    links: Mapping[str, CommandLink],
) -> int:
    from router_trio.audit.trial import Trial

    changes = await Trial(old, new, links).run(last)
    show(*changes.lines())
    return DONE


def _route(settings: Settings, name: str) -> RouteSettings | None:
    route = next((one for one in settings.routes if one.name == name), None)
    if route is not None and not route.source.kind.is_stored:
        raise UsageError(f"route {name} reads a subject, so there are no last messages; it needs a stream")
    return route


def _source(route: RouteSettings) -> tuple[str, str | None]:
    return route.source.connection, route.source.kind.stream(route.source)


def lines(found: Difference) -> Iterator[str]:
    """Yield the lines that `diff` prints."""
    for key in found.process:
        yield f"{key}{' (needs a restart)' if key.needs_restart else ''}"
    yield from _lines("connection", found.connections)
    yield from _lines("stream", found.streams)
    yield from _lines("route", found.routes, found.left)


def _lines(kind: str, names: Names, left: Mapping[str, Sequence[str]] = _NOTHING_LEFT) -> Iterator[str]:
    yield from (f"{kind} {name}: added" for name in names.added)
    for name in names.removed:
        yield f"{kind} {name}: removed"
        yield from (f"    {one}" for one in left.get(name, ()))
    for change in names.changed:
        yield f"{kind} {change.name}: changed{_kept(change)}"
        yield from (f"    {key}" for key in change.keys)
        yield from (f"    its connection {name} changes" for name in change.connections)
        yield from (f"    {one}" for one in left.get(change.name, ()))
    yield from (f"{kind} {name}: unchanged" for name in names.unchanged)


def _kept(change: Change) -> str:
    return ", and keeps its subscription" if change.keeps_subscription else ""
