"""`[[positions]]`: consumers whose positions a router keeps at the destination of a route."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from router_trio.errors import Problem
from router_trio.settings.patterns import check_name
from router_trio.settings.problems import no_route
from router_trio.settings.sections import Section
from router_trio.settings.units import DurationForm

if TYPE_CHECKING:
    from router_trio.settings.routes import RouteSettings

Interval = Annotated[float, DurationForm(minimum=1.0)]

_NOT_IN_BUCKETS = re.compile(r"[^A-Za-z0-9_-]")


class PositionSettings(Section, init=False):
    """`[[positions]]`: a consumer of the stream that a route reads. A running router keeps checkpoints of it."""

    consumer: str = Field(min_length=1, description="Name of the consumer.", examples=["billing"])
    route: str = Field(min_length=1, description="Name of the route that copies the stream.", examples=["copy"])
    bucket: str = Field(
        "router-positions",
        min_length=1,
        description="KV bucket for the checkpoints, at the route's destination; created if it does not exist.",
    )
    replicas: int = Field(1, ge=1, le=5, description="Replicas of the bucket if it is created.")
    interval: Interval = Field("10s", validate_default=True, description="Time between two checkpoints, 1s or more.")

    @property
    def key(self) -> str:
        """The key of the checkpoints in the bucket."""
        return f"{_token(self.route)}.{_token(self.consumer)}"


def _token(name: str) -> str:
    """Return a name as a token of a key: `=` and two digits replace each byte that keys do not allow."""
    return "".join(
        chr(byte) if re.match(rb"[A-Za-z0-9_-]", bytes([byte])) else f"={byte:02X}" for byte in name.encode()
    )


def check_positions(positions: Sequence[PositionSettings], routes: Sequence[RouteSettings]) -> Iterator[Problem]:
    """Yield every problem of the `[[positions]]` of an otherwise valid configuration."""
    by_name = {route.name: route for route in routes}
    keys = set[str]()
    for index, one in enumerate(positions):
        path = f"positions[{index}]"
        yield from check_name(f"{path}.consumer", one.consumer)
        yield from check_name(f"{path}.bucket", one.bucket, _NOT_IN_BUCKETS)
        route = by_name.get(one.route)
        if route is None:
            yield Problem(f"{path}.route", no_route(one.route, by_name))
        elif not route.source.kind.is_stored:
            yield Problem(f"{path}.route", f"route {one.route} reads a subject, which has no consumers; name another")
        elif route.source.partitions is not None:
            text = f"route {one.route} has partitions, each with a position of its own; name a route with one durable"
            yield Problem(f"{path}.route", text)
        elif len({to.connection for to in route.to}) != 1:
            text = f"route {one.route} sends to several connections, so a copy is in none of them; name another"
            yield Problem(f"{path}.route", text)
        if one.key in keys:
            yield Problem(path, f"consumer {one.consumer} of route {one.route} is given twice; remove one of them")
        keys.add(one.key)
