"""`router-trio find`: show where a message of a source is, and what became of it in each route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError, configuration, number
from router_trio.cli.configuration import load
from router_trio.cli.output import show, show_json, to_stderr
from router_trio.errors import SubjectError
from router_trio.errors.quotes import LONGEST_TEXT, excerpt

if TYPE_CHECKING:
    from router_trio.nats.command_link import CommandLink
    from router_trio.settings import Settings


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `find`."""
    parser.add_argument(
        "config", type=configuration, metavar="CONFIG", help="the configuration, a TOML file; - reads standard input"
    )
    parser.add_argument("subject", metavar="SUBJECT", help="the subject of the message in its source")
    from router_trio.protocol.framing import LAST_SEQUENCE

    parser.add_argument(
        "--sequence",
        type=number(1, LAST_SEQUENCE),
        metavar="N",
        help="its sequence in the source; default: the last one of SUBJECT",
    )
    parser.add_argument(
        "--as",
        dest="aliases",
        action="append",
        default=[],
        metavar="[ROUTE=]NAME",
        help="the name that the route had when it made the copies; with ROUTE= if several routes read SUBJECT",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def find(config: Path, subject: str, *, sequence: int | None, aliases: Sequence[str], json: bool) -> int:
    """Show where a message is, and what became of it in each route.

    Looks up the last message with a subject, or the one with a sequence,
    in each stream that a route reads. For each route of that stream it
    prints what became of the message: the copies and where each of them is
    stored, its dead letter, or that it was filtered, is waiting or is not
    of the route's filter, and why.

    Copies and dead letters are found by their ids, which are computed from
    the message and the configuration of today. A message that the stream
    no longer has is found by its copies. Nothing is changed, and no handler
    is called. The ids contain the name of the route: --as gives the one
    that a renamed route had.

    If a stream is missing or can't be read, or a connection can't be
    opened, what it could have shown is unknown, and the rest is printed.

    The exit code is 1 if no stream has or had such a message, and if
    something could not be read.

    For example:

        router-trio find router.toml orders.77
        router-trio find router.toml orders.77 --sequence 1234 --json
        router-trio find router.toml orders.77 --as billing=invoices
    """
    import trio

    from router_trio.audit.find import connections_for, routes_for
    from router_trio.cli.over_links import over_links
    from router_trio.subjects.patterns import validate_subject

    try:
        validate_subject(subject)
    except SubjectError as error:
        raise UsageError(str(error)) from None
    settings = load(config)
    settings.require_servers()
    names = connections_for(settings, subject)
    if not names:
        raise UsageError("no route of the configuration reads a stream, so no message is stored")
    former_names = dict(_former_name(text, routes_for(settings, subject), subject) for text in aliases)
    unreachable: dict[str, str] = {}
    job = partial(_job, settings, subject, sequence, former_names, json, unreachable)
    return trio.run(over_links, settings, "find", names, job, lambda number: True, unreachable)


def _former_name(text: str, routes: Sequence[str], subject: str) -> tuple[str, str]:
    """Return the route that an `--as` is for, and the name that it had. Raises `UsageError`."""
    for route in sorted(routes, key=len, reverse=True):  # the name of a route may contain "="
        if text == f"{route}=":
            raise UsageError(f"--as {text}: the name that route {route} had is missing")
        if text.startswith(f"{route}="):
            return route, text[len(route) + 1 :]
    named, equals, _ = text.partition("=")
    if equals:
        from router_trio.settings.problems import suggestion

        raise UsageError(f"--as {text}: no route {named!r} from a stream reads {subject}; {suggestion(named, routes)}")
    if len(routes) != 1:
        known = f"{', '.join(routes)} read {subject}; give --as ROUTE={text}"
        raise UsageError(f"--as {text}: " + (known if routes else f"no route from a stream reads {subject}"))
    return routes[0], text


async def _job(
    settings: Settings,
    subject: str,
    sequence: int | None,
    former_names: Mapping[str, str],
    json: bool,
    unreachable: Mapping[str, str],
    links: Mapping[str, CommandLink],
) -> int:
    from router_trio.audit.find import Finder
    from router_trio.cli.over_links import permissions_of

    found = await Finder(settings, links, unreachable, former_names).find(subject, sequence)
    if json:
        show_json(found.as_json())
    elif found.messages:
        show(*found.lines())
    for note in () if found.messages else found.notes:
        to_stderr(f"router-trio: {excerpt(note, LONGEST_TEXT)}")
    for why in found.unread:
        to_stderr(f"router-trio: not read: {excerpt(why, LONGEST_TEXT)}")
    if found.lacks_permission:
        to_stderr(f"router-trio: {permissions_of('find')}")
    return DONE if found.messages and not found.unread else FAILED
