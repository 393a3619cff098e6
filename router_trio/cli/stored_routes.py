"""Arguments of commands that work on a route from a stream: the route, and a range of its messages."""

from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from router_trio.cli.command_line import Parser, UsageError, configuration, number
from router_trio.errors import ExpressionError

if TYPE_CHECKING:
    from router_trio.audit.audit import Range
    from router_trio.expressions.expression import Expression
    from router_trio.settings import RouteSettings, Settings

EXAMPLE = "2026-11-29T10:00:00Z"

NOT_WITH_PARTITIONS = "this command is for a route with one durable"

Bound = int | datetime
"""The first or the last message: a sequence or a time."""


def add_route(parser: Parser, described: str = "the name of the route, which reads a stream") -> None:
    """Add the configuration and the name of a route, `described` in the help."""
    parser.add_argument(
        "config", type=configuration, metavar="CONFIG", help="the configuration, a TOML file; - reads standard input"
    )
    parser.add_argument("route", metavar="ROUTE", help=described)


def add_range(parser: Parser) -> None:
    """Add `start` and `end`: the first and the last message of the range."""
    bound = f"a sequence of the source stream, or a time such as {EXAMPLE}"
    parser.add_argument("--from", dest="start", type=_bound, metavar="N|TIME", help=f"the first message: {bound}")
    parser.add_argument("--to", dest="end", type=_bound, metavar="N|TIME", help=f"the last message: {bound}")


def stored_route(settings: Settings, name: str, why_not: str, *, any_partitions: bool = False) -> RouteSettings:
    """Return a route from a stream. Raises `UsageError`, with `why_not` if the route reads a subject.

    A route with partitions is refused as well unless `any_partitions` are allowed: the ids of its copies may lack the
    time of the message, and each partition has a position of its own.
    """
    for route in settings.routes:
        if route.name == name:
            if not route.source.kind.is_stored:
                raise UsageError(f"route {name} reads a subject, {why_not}")
            if route.source.partitions is not None and not any_partitions:
                raise UsageError(f"route {name} has partitions, each with a position of its own: {NOT_WITH_PARTITIONS}")
            return route
    from router_trio.settings.problems import no_route

    raise UsageError(no_route(name, [route.name for route in settings.routes]))


def condition_of(where: str | None) -> Expression | None:
    """Return the compiled `--where`, None if it is not given. Raises `UsageError` with the place of a mistake."""
    from router_trio.settings.expressions import WHEN, compile_for

    try:
        return None if where is None else compile_for(where, WHEN, from_stream=True)
    except ExpressionError as error:
        place = f"--where, line {error.line}, column {error.column}"
        raise UsageError(f"{place}: {error.message}\n{error.picture}") from None


def consumer_of(route: RouteSettings) -> tuple[str, str]:
    """Return the stream and the durable of a route from a stream."""
    consumer = route.source.kind.consumer(route.source)
    assert consumer is not None, "the route reads a stream"
    return consumer


def moment(text: str) -> datetime:
    """Return a time as UTC, which is also meant if the text names no time zone. For use as the type of an argument."""
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # OverflowError: in UTC the year would be 0 or 10000
        raise ArgumentTypeError(f"{text!r} is not a time such as {EXAMPLE}") from None


def range_of(start: Bound | None, end: Bound | None) -> Range:
    """Return the range from the message or time `start` to `end`. Raises `UsageError` if `end` is before it."""
    from router_trio.audit.audit import Range

    def nanoseconds(bound: Bound | None) -> int | None:
        return round(bound.timestamp() * 1e6) * 1000 if isinstance(bound, datetime) else None

    first, last = (bound if isinstance(bound, int) else None for bound in (start, end))
    since, until = nanoseconds(start), nanoseconds(end)
    backwards = (first is not None and last is not None and first > last) or (
        since is not None and until is not None and since > until
    )
    if backwards:
        raise UsageError(f"--to {_text(end)} is before --from {_text(start)}")
    return Range(first, last, since, until)


def _text(bound: Bound | None) -> str:
    return bound.isoformat().replace("+00:00", "Z") if isinstance(bound, datetime) else str(bound)


def _bound(text: str) -> Bound:
    if text.isdecimal():
        return number(1)(text)
    try:
        return moment(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{text!r} is neither a sequence nor a time such as {EXAMPLE}") from None
