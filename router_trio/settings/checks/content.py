"""Check the expressions, the strategy and the destinations of a route against each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from router_trio.errors import ExpressionError, Problem, PublishError
from router_trio.protocol.control_headers import is_control_header
from router_trio.protocol.headers import Headers, encode
from router_trio.protocol.message_ids import NAME as MESSAGE_ID
from router_trio.settings.expressions import DELAY, HEADER, KEY, PAYLOAD, WHEN, compile_for
from router_trio.settings.routes import MAX_WEIGHT, DestinationSettings, HeaderSettings
from router_trio.settings.routes.destinations.delayed import constant_delay

MAX_WEIGHTS = 10 * MAX_WEIGHT
"""Sum of the weights of a route."""

_WEIGHS = ("weighted", "sticky")
_HAS_CONDITIONS = ("all", "first_match")


def check_content(
    path: str,
    *,
    when: str | None,
    key: str | None,
    strategy: str | None,
    to: Sequence[DestinationSettings | None],
    from_stream: bool,
) -> Iterator[Problem]:
    """Yield each problem of the keys that decide by content. Values of None are unknown and not checked."""
    yield from check_expression(f"{path}.when", when, WHEN, from_stream)
    yield from check_expression(f"{path}.key", key, KEY, from_stream)
    if strategy == "sticky" and key is None:
        yield Problem(
            f"{path}.key",
            "missing; strategy 'sticky' needs an expression for what belongs together, such as a customer's id",
        )
    for index, destination in enumerate(to):
        if destination is not None:
            where = f"{path}.to[{index}]"
            yield from check_expression(f"{where}.when", destination.when, WHEN, from_stream)
            yield from check_expression(f"{where}.payload", destination.payload, PAYLOAD, from_stream)
            yield from _check_delay(f"{where}.delay", destination.delay, from_stream)
            for name, text in destination.headers.set.items():
                yield from check_expression(f"{where}.headers.set.{name}", text, HEADER, from_stream)
            yield from _check_header_names(f"{where}.headers", destination.headers)
            yield from _check_ttl(where, destination)
            yield from _check_choice(where, destination, strategy)
    if all(to):
        yield from _check_destinations(path, [one for one in to if one is not None], strategy)


def problem_of(path: str, text: str, error: ExpressionError) -> Problem:
    """Return the problem of an expression in the configuration."""
    where = f", at line {error.line}, column {error.column} of the expression" if "\n" in text else ""
    return Problem(path, f"{error.message}{where}", error.picture)


def check_expression(path: str, text: str | None, purpose: str, from_stream: bool) -> Iterator[Problem]:
    """Yield the problem of an expression for a purpose; nothing if no expression is given."""
    if text is not None:
        try:
            compile_for(text, purpose, from_stream=from_stream)
        except ExpressionError as error:
            yield problem_of(path, text, error)


def _check_delay(path: str, delay: str | None, from_stream: bool) -> Iterator[Problem]:
    if delay is None:
        return
    try:
        constant = constant_delay(delay)
    except ValueError as error:
        yield Problem(path, str(error))
        return
    if constant is None:
        yield from check_expression(path, delay, DELAY, from_stream)


def _check_header_names(path: str, headers: HeaderSettings) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    names = [(f"{path}.set.{name}", name) for name in headers.set]
    names += [(f"{path}.remove[{index}]", name) for index, name in enumerate(headers.remove)]
    for where, name in names:
        first = seen.setdefault(name.lower(), where)
        if first != where:
            yield Problem(where, f"{name!r} is in {first.removeprefix(f'{path}.')} already; keep one of them")
        elif name.lower() == MESSAGE_ID.lower():
            yield Problem(where, f"{name} is set by the router, as message_id in [routes.from] says; remove it")
        elif is_control_header(name):
            removed = where.startswith(f"{path}.remove")
            cure = "is never copied" if removed else "steers the stream, and can't be set; there is `ttl`"
            yield Problem(where, f"{name!r} is a control header, which {cure}; remove it")
        else:
            try:
                encode(Headers([(name, "")]))
            except PublishError as error:
                yield Problem(where, str(error))


def _check_ttl(path: str, destination: DestinationSettings) -> Iterator[Problem]:
    if not destination.ttl.is_integer():
        yield Problem(f"{path}.ttl", "a stream counts in whole seconds; leave out the fraction")


def _check_choice(path: str, destination: DestinationSettings, strategy: str | None) -> Iterator[Problem]:
    """Check the keys of one destination that select its messages."""
    if destination.when is not None:
        if destination.mirror is not None:
            yield Problem(f"{path}.when", "can't be combined with mirror; remove it, or mirror in a route of its own")
        elif strategy is not None and strategy not in _HAS_CONDITIONS:
            yield Problem(
                f"{path}.when", f"strategy {strategy!r} does not use it; remove it, or set when for the whole route"
            )
    if destination.weight != 1:
        if destination.mirror is not None:
            yield Problem(f"{path}.weight", "can't be combined with mirror, which is a share by itself; remove it")
        elif strategy is not None and strategy not in _WEIGHS:
            yield Problem(
                f"{path}.weight",
                f"strategy {strategy!r} does not use weights; remove it, or set strategy = 'weighted' or 'sticky'",
            )


def _check_destinations(path: str, to: Sequence[DestinationSettings], strategy: str | None) -> Iterator[Problem]:
    """Check the destinations of a route against each other."""
    chosen = [(index, one) for index, one in enumerate(to) if one.mirror is None]
    if to and not chosen:
        yield Problem(f"{path}.to", "has only mirrors, and each message has to go somewhere; add a destination")
    if strategy == "fallback" and len(chosen) == 1:
        yield Problem(f"{path}.to", "strategy 'fallback' has nothing to fall back to; add a destination without mirror")
    if strategy == "first_match":
        first = next((index for index, one in chosen if one.when is None), None)
        if first is not None and first != chosen[-1][0]:
            yield Problem(
                f"{path}.to[{first}].when",
                f"missing; without it every message goes here, and none to to[{first + 1}] and later; move it to the "
                "end, or say when",
            )
    weights = sum(one.weight for _, one in chosen)
    if weights > MAX_WEIGHTS:
        yield Problem(f"{path}.to", f"the weights add up to {weights}, and at most to {MAX_WEIGHTS}; take smaller ones")
