"""What must hold between a limit or a breaker and the rest of its route."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from router_trio.errors import Problem
from router_trio.settings.checks.content import check_expression
from router_trio.settings.expressions import PER
from router_trio.settings.routes import DestinationSettings, LimitSettings


def check_flow(
    path: str, *, limit: LimitSettings | None, to: Sequence[DestinationSettings | None], from_stream: bool
) -> Iterator[Problem]:
    """Give everything that is wrong with the limit and the breakers of a route. What is None is not judged."""
    if limit is not None:
        yield from check_expression(f"{path}.limit.per", limit.per, PER, from_stream)
    for index, destination in enumerate(to):
        if destination is None or destination.breaker is None:
            continue
        where = f"{path}.to[{index}].breaker"
        if destination.mirror is not None:
            yield Problem(where, "a mirror holds up nothing when it fails, so it needs none; remove it")
        elif not destination.jetstream:
            yield Problem(where, "only a stream says whether it took a message; set jetstream = true, or remove it")
