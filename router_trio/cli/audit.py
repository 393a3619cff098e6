"""`router-trio audit`: compare the source of a route with the streams of its destinations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError, number
from router_trio.cli.configuration import load
from router_trio.cli.output import show, show_json, to_stderr
from router_trio.cli.progress import progress_bar
from router_trio.cli.stored_routes import Bound, add_range, add_route, range_of, stored_route
from router_trio.errors import RouterError

if TYPE_CHECKING:
    from router_trio.audit.audit import Range
    from router_trio.audit.repair import Repair
    from router_trio.nats.command_link import CommandLink
    from router_trio.settings import RouteSettings, Settings


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `audit`."""
    add_route(parser)
    add_range(parser)
    parser.add_argument(
        "--as", dest="alias", metavar="NAME", help="the name that the route had when it made the copies"
    )
    parser.add_argument("--rate", type=number(1), metavar="N", help="read at most N messages a second")
    parser.add_argument(
        "--repair", action="store_true", help="publish what is missing, delete what is extra, audit again"
    )
    parser.add_argument("--dry-run", action="store_true", help="with --repair, print what would be done")
    parser.add_argument("--yes", action="store_true", help="with --repair, publish without confirmation")
    parser.add_argument("--json", action="store_true", help="print JSON")


def audit(
    config: Path,
    route: str,
    *,
    start: Bound | None,
    end: Bound | None,
    alias: str | None,
    rate: int | None,
    repair: bool,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> int:
    """Compare the source of a route with its destinations, message by message.

    Reads the source stream, computes the copies that the route makes of
    each message, and looks for them in the streams of the destinations by
    their ids. Prints how many copies are there, missing, twice, different
    and so on, and each one that is wrong. Messages above the ack floor of
    the durable are pending. Copies of a handler are recognized, but their
    contents are not compared, and one that is absent is unknown. Between
    buckets, a key that only the copy has is extra.

    Nothing is changed. With --repair, missing copies are published with
    the ids that they would have had, at the rate of the route's limit,
    and everything is audited again. They are stored behind newer ones. A
    repair of more messages than the route ever got asks first. Extra keys
    are deleted unless their values have changed.

    The exit code is 1 if a copy is missing, twice, different or extra, or if
    a server can't be reached or refuses a request. Interrupted by Ctrl-C, the
    command reports how far it came and the --from with which to continue.

    For example:

        router-trio audit router.toml orders
        router-trio audit router.toml orders --from 2026-11-29T00:00:00Z
        router-trio audit router.toml orders --repair --dry-run
    """
    import trio

    if (dry_run or yes) and not repair:
        raise UsageError(f"{'--dry-run' if dry_run else '--yes'} can only be used with --repair")
    settings = load(config)
    settings.require_servers()
    found = stored_route(settings, route, "so there are no messages to compare; it needs a stream")
    if alias is not None:
        found = found.model_copy(update={"name": alias})
    from router_trio.audit.audit import connections_of
    from router_trio.cli.over_links import over_links

    job = partial(_job, settings, found, range_of(start, end), rate or 0, repair, dry_run, yes, json)
    return trio.run(over_links, settings, "audit", connections_of(found), job, lambda number: True)


async def _job(
    settings: Settings,
    route: RouteSettings,
    wanted: Range,
    rate: float,
    repair: bool,
    dry_run: bool,
    yes: bool,
    json: bool,
    links: Mapping[str, CommandLink],
) -> int:
    import trio

    from router_trio.audit.audit import Audit, RangeError
    from router_trio.audit.repair import excess, repaired
    from router_trio.cli.confirmation import confirm

    async def ask(why: str) -> None:
        if not yes:
            question = f"{why[0].upper()}{why[1:]}. Publish all of them?"
            without = f"{why}; add --yes to publish all of them, or try --dry-run first"
            await confirm(question, without_terminal=without, otherwise="nothing was published")

    audits: list[Audit] = []
    published: Repair | None = None
    try:
        with progress_bar("comparing") as progress:
            if repair and not dry_run:
                begun = audits.append
                found, published = await repaired(
                    settings, route, links, wanted, rate=rate, progress=progress, begun=begun, confirm=ask
                )
            else:
                audits.append(Audit(settings, route, links, rate=rate, progress=progress))
                found = await audits[0].run(wanted)
        if dry_run:
            async for expected in audits[0].missing():
                assert expected.copy is not None
                copy = f"would publish {expected.copy.subject} to connection {expected.copy.connection}"
                (to_stderr if json else show)(copy)
            async for one in audits[0].extra():
                (to_stderr if json else show)(f"would delete {one.subject} of connection {one.connection}")
            _print_overtaken(audits[0].overtaken)
            if (why := excess(audits[0])) is not None:
                to_stderr(f"router-trio: {why}; --repair asks first")
    except RangeError as error:
        raise UsageError(f"{error} (--from, --to)") from None
    except (trio.Cancelled, RouterError):
        if audits:
            to_stderr(f"router-trio: {audits[-1].how_far()}")
        raise
    if published is not None and published.was_used:
        _print_repair(published)
    if json:
        show_json(found.as_json())
        for note in found.notes:
            to_stderr(f"router-trio: {note}")
    else:
        show(*found.lines())
    return DONE if found.clean else FAILED


def _print_repair(published: Repair) -> None:
    to_stderr(f"router-trio: copies published: {published.stored:,}, refused: {published.refused:,}")
    if published.deleted:
        to_stderr(f"router-trio: extra keys deleted: {published.deleted:,}")
    if published.duplicates:
        why = "their streams still remember the ids; repeat the repair after the duplicate window"
        to_stderr(f"router-trio: copies not stored: {published.duplicates:,}: {why}")
    _print_overtaken(published.overtaken)
    for refusal in published.refusals:
        to_stderr(f"router-trio: not stored: {refusal}")


def _print_overtaken(count: int) -> None:
    if count:
        why = "their streams keep the newest messages of a subject, and have newer ones"
        to_stderr(f"router-trio: copies not published: {count:,}: {why}")
