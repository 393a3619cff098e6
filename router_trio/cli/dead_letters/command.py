"""`router-trio dead-letters`: its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from router_trio.cli import outcome
from router_trio.errors import ExpressionError

Action = Literal["list", "show", "redrive", "purge"]


def dead_letters(
    config: Annotated[Path, Parameter(help="The configuration, a TOML file.")],
    route: Annotated[str, Parameter(help="The name of the route.")],
    action: Annotated[Action, Parameter(help="What to do with them.")],
    /,
    *sequence: Annotated[int, Parameter(help="Only these, by the number that list prints.", show_default=False)],
    where: Annotated[
        str | None, Parameter(help="Only those of which this expression holds.", show_default=False)
    ] = None,
    limit: Annotated[int | None, Parameter(help="At most so many, the oldest first.", show_default=False)] = None,
    dry_run: Annotated[bool, Parameter(help="Only say what would be done.", show_default=False)] = False,
    yes: Annotated[bool, Parameter(help="Purge without asking.", show_default=False)] = False,
    stream: Annotated[
        str | None, Parameter(help="The stream that has them, if there are several.", show_default=False)
    ] = None,
    to_source: Annotated[
        bool,
        Parameter(help="Redrive to the old subjects: all consumers of the source get them.", show_default=False),
    ] = False,
    foreign: Annotated[
        bool,
        Parameter(help="Redrive also those that do not look as if this route had written them.", show_default=False),
    ] = False,
    hex: Annotated[bool, Parameter(help="Show the payload in hexadecimal.", show_default=False)] = False,
    json: Annotated[bool, Parameter(help="Print JSON; a list as one line for each.", show_default=False)] = False,
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
    from router_trio.settings import Settings
    from router_trio.settings.expressions import WHEN, compile_for

    if action == "show" and len(sequence) != 1:
        told = "needs the SEQUENCE of one, as list prints it" if not sequence else "takes one SEQUENCE"
        raise outcome.UsageError(f"show {told}; router-trio dead-letters --help shows examples")
    if any(one < 1 for one in sequence):
        raise outcome.UsageError(f"SEQUENCE {min(sequence)}: must be at least 1, as list prints it")
    if (to_source or foreign) and action != "redrive":
        raise outcome.UsageError(f"{'--to-source' if to_source else '--foreign'} is for redrive alone")
    if limit is not None and limit < 1:
        raise outcome.UsageError(f"--limit {limit}: must be at least 1")
    settings = Settings.load(config)
    settings.require_servers()
    try:
        condition = None if where is None else compile_for(where, WHEN, from_stream=True)
    except ExpressionError as error:
        raise outcome.UsageError(f"--where: {error}") from None

    from router_trio.cli.dead_letters.work import Options, run

    return run(
        settings,
        route,
        action,
        Options(sequence, condition, limit, dry_run, yes, stream, hex, json, to_source, foreign),
    )
