"""`router-trio dead-letters`: its arguments and help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from router_trio.cli.command_line import Parser, UsageError, number, one_of
from router_trio.cli.stored_routes import add_route, condition_of

Action = Literal["list", "show", "redrive", "purge"]
ACTIONS = get_args(Action)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `dead-letters`."""
    add_route(parser, "the name of the route")
    parser.add_argument(
        "action", type=one_of(*ACTIONS), choices=ACTIONS, metavar="ACTION", help=f"one of {', '.join(ACTIONS)}"
    )
    parser.add_argument(
        "sequence",
        nargs="*",
        type=number(),
        metavar="SEQUENCE",
        help="only these dead letters, by the SEQUENCE that list prints",
    )
    parser.add_argument("--where", metavar="EXPR", help="only dead letters for which this expression is true")
    parser.add_argument("--limit", type=number(1), metavar="N", help="at most N dead letters, the oldest first")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, but change nothing")
    parser.add_argument("--yes", action="store_true", help="purge without confirmation")
    parser.add_argument(
        "--stream", metavar="NAME", help="the stream of the dead letters, if several take their subject"
    )
    parser.add_argument(
        "--to-source",
        action="store_true",
        help="publish on the original subjects: all consumers of the source get the messages",
    )
    parser.add_argument(
        "--foreign",
        action="store_true",
        help="also redrive dead letters that this route does not seem to have written",
    )
    parser.add_argument("--hex", action="store_true", help="show the payload in hexadecimal")
    parser.add_argument("--json", action="store_true", help="print JSON; list prints one line for each dead letter")


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
    r"""List, show, redrive or purge the dead letters of a route.

    list prints one line for each dead letter; show SEQUENCE prints all of
    one. list, redrive and purge apply to all dead letters of the route, or
    to those with the given SEQUENCEs: the first column of list, which is
    the sequence of the dead letter in its own stream.

    redrive sends each message through its route again: handler,
    expressions and destinations, with the ids that its copies would have
    had. A dead letter is deleted when all copies were read back from their
    streams, or, for a core destination, when the server has delivered them
    to a subscriber. If the route fails again or filters the message out,
    the dead letter stays, and the reason is printed on stderr. A redrive
    that was interrupted can be run again. With --to-source the message is
    published on its original subject instead, where every consumer gets
    it. purge deletes dead letters after a confirmation.

    --where takes an expression, as in a route, that is evaluated on the
    dead letter:
    'headers["Router-Dead-Letter-Reason"] == "timeout" && size < 1024'.
    Dead letters that are stored while the command runs are ignored. The
    exit code is 1 if a dead letter could not be processed; it then stays
    in its stream.

    For example:

        router-trio dead-letters router.toml orders list
        router-trio dead-letters router.toml orders show 17
        router-trio dead-letters router.toml orders redrive 17 18
        router-trio dead-letters router.toml orders redrive --limit 10
        router-trio dead-letters router.toml orders purge \
            --where 'body.total < 1.0' --dry-run
    """
    from router_trio.cli.configuration import load

    if action == "show" and len(sequence) != 1:
        problem = "needs a SEQUENCE, as list prints it" if not sequence else "takes only one SEQUENCE"
        raise UsageError(f"show {problem}; router-trio dead-letters --help shows examples")
    if any(value < 1 for value in sequence):
        raise UsageError(f"SEQUENCE {min(sequence)}: must be at least 1, as list prints it")
    if (to_source or foreign) and action != "redrive":
        raise UsageError(f"{'--to-source' if to_source else '--foreign'} can only be used with redrive")
    settings = load(config)
    settings.require_servers()
    condition = condition_of(where)

    from router_trio.cli.dead_letters.actions import Options, run

    return run(
        settings,
        route,
        action,
        Options(tuple(sequence), condition, limit, dry_run, yes, stream, hex, json, to_source, foreign),
    )
