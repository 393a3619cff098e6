"""`check` compares the filter of a route with the stream that `[[streams]]` of the same configuration creates."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import Settings
from router_trio.settings.checks.warnings import warnings
from tests.support.settings import stream_route


@pytest.mark.parametrize(
    ("filter", "stream", "warned"),
    [
        ("orders.*", {}, False),
        (["orders.a", "orders.b.>"], {}, False),
        ("order.*", {}, True),
        (["orders.*", "order.*"], {}, True),
        (None, {}, False),
        ("order.*", {"name": "OTHER"}, False),
        ("order.*", {"connection": "there"}, False),
    ],
)
def test_a_filter_that_matches_nothing_of_its_stream_is_warned_about(
    filter: Any, stream: dict[str, Any], warned: bool
) -> None:
    source = {} if filter is None else {"filter": filter}
    route = stream_route("ORDERS", "copies", connection="here", **source)
    route["to"][0]["connection"] = "here"
    settings = Settings(
        connections={"here": {}, "there": {}},
        routes=[route],
        streams=[{"name": "ORDERS", "connection": "here", "subjects": ["orders.>", "returns.*"], **stream}],
    )
    found = [one for one in warnings(settings.connections, settings.routes, settings.streams) if "filter" in one.path]
    assert bool(found) == warned
    for one in found:
        assert one.path == "routes[0].from.filter"
        assert "'order.*' matches none of the subjects of streams[0] (ORDERS), which are orders.>, returns.*" in str(
            one
        )
