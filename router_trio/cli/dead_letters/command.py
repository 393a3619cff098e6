"""`router-trio dead-letters`: its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from router_trio.cli.command_line import Parser, UsageError, configuration, number, one_of
from router_trio.errors import ExpressionError

Action = Literal["list", "show", "redrive", "purge"]
ACTIONS = get_args(Action)


def add_arguments(parser: Parser) -> None:
    """Add what `dead-letters` takes."""
    parser.add_argument(
        "config", type=configuration, metavar="CONFIG", help="the configuration, a TOML file; - reads standard input"
    )
    parser.add_argument("route", metavar="ROUTE", help="the name of the route")
    parser.add_argument(
        "action", type=one_of(*ACTIONS), choices=ACTIONS, metavar="ACTION", help=f"one of {', '.join(ACTIONS)}"
    )
    parser.add_argument(
        "sequence",
        nargs="*",
        type=number(),
        metavar="SEQUENCE",
        help="only these dead letters, by the number that list prints",
    )
    parser.add_argument("--where", metavar="EXPR", help="only those of which this expression holds")
    parser.add_argument("--limit", type=number(1), metavar="N", help="at most so many, the oldest first")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--yes", action="store_true", help="purge without asking")
    parser.add_argument("--stream", metavar="NAME", help="the stream that has them, if there are several")
    parser.add_argument(
        "--to-source",
        action="store_true",
        help="redrive to the old subjects: all consumers of the source get them",
    )
    parser.add_argument(
        "--foreign",
        action="store_true",
        help="redrive also those that do not look as if this route had written them",
    )
    parser.add_argument("--hex", action="store_true", help="show the payload in hexadecimal")
    parser.add_argument("--json", action="store_true", help="print JSON; a list as one line for each")


def dead_letters(
    config: Path,
    route: str,
    action: Action,
    sequence: Sequence[int],
    *,
    where: str | None,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    stream: str | None,
    to_source: bool,
    foreign: bool,
    hex: bool,
    json: bool,
) -> int:
    r"""Look at what a route has given up, send it again, or delete it.

    list prints a line for each dead letter, show SEQUENCE all of one.
    list, redrive and purge are about all of the route, or about those
    whose SEQUENCEs are given: the first column of list, the place of the
    dead letter in its own stream.
    redrive takes each through its own route: handler, expressions and
    destinations, with the ids that the copies would have had. It is deleted
    when all that was sent is read back from its stream, or, where that is
    a core subject, when the server has passed it on. What the route fails
    on again, or filters out, stays, and the reason is on stderr. A redrive
    that was cut short can be run again. --to-source sends it to the subject
    on which it came instead: every consumer of that gets it. purge deletes,
    and asks before it does.

    --where takes an expression as routes have it, over the dead letter:
    'headers["Router-Dead-Letter-Reason"] == "timeout" && size < 1024'.
    What is added while the command runs is left alone. It exits with 1
    if something could not be done; the dead letter is then still there.

    For example:

        router-trio dead-letters router.toml orders list
        router-trio dead-letters router.toml orders show 17
        router-trio dead-letters router.toml orders redrive 17 18
        router-trio dead-letters router.toml orders redrive --limit 10
        router-trio dead-letters router.toml orders purge \
            --where 'body.total < 1.0' --dry-run
    """
    from router_trio.cli.configuration import load
    from router_trio.settings.expressions import WHEN, compile_for

    if action == "show" and len(sequence) != 1:
        told = "needs the SEQUENCE of one, as list prints it" if not sequence else "takes one SEQUENCE"
        raise UsageError(f"show {told}; router-trio dead-letters --help shows examples")
    if any(one < 1 for one in sequence):
        raise UsageError(f"SEQUENCE {min(sequence)}: must be at least 1, as list prints it")
    if (to_source or foreign) and action != "redrive":
        raise UsageError(f"{'--to-source' if to_source else '--foreign'} is for redrive alone")
    settings = load(config)
    settings.require_servers()
    try:
        condition = None if where is None else compile_for(where, WHEN, from_stream=True)
    except ExpressionError as error:
        raise UsageError(f"--where: {error}") from None

    from router_trio.cli.dead_letters.actions import Options, run

    return run(
        settings,
        route,
        action,
        Options(tuple(sequence), condition, limit, dry_run, yes, stream, hex, json, to_source, foreign),
    )
