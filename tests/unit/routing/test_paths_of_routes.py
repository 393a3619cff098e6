"""The source and the destinations of each route are shown as configured."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import Message
from tests.support.world import core, handled, stream, to, two_brokers, world

DEAD = {"subject": "out.dead", "connection": "edge"}
ON_EDGE = to("out.{{wildcard(1)}}", "edge", jetstream=True)


@pytest.mark.parametrize(
    ("route", "source", "destinations"),
    [
        (
            core("a.*", to("b.{{wildcard(1)}}"), ON_EDGE, connection="main", queue="routers"),
            {"connection": "main", "subject": "a.*", "queue": "routers"},
            [
                {"connection": "main", "subject": "b.{{wildcard(1)}}", "jetstream": False},
                {"connection": "edge", "subject": "out.{{wildcard(1)}}", "jetstream": True},
            ],
        ),
        (
            stream("IN", ON_EDGE, connection="main", filter="in.*", dead_letter=DEAD),
            {"connection": "main", "stream": "IN", "durable": "router", "filter": "in.*"},
            [
                {"connection": "edge", "subject": "out.{{wildcard(1)}}", "jetstream": True},
                {"connection": "edge", "subject": "out.dead", "jetstream": True, "dead_letters": True},
            ],
        ),
    ],
    ids=["core", "stream"],
)
async def test_the_path_of_a_route_is_shown(
    route: dict[str, Any], source: dict[str, str], destinations: list[dict[str, Any]]
) -> None:
    async with world([route], brokers=two_brokers()) as w:
        shown = w.live.status()["routes"]["route"]
    assert (shown["from"], shown["to"]) == (source, [one | {"routed": 0} for one in destinations])


async def test_the_path_of_a_route_that_answers_is_shown() -> None:
    def answer(message: Message) -> Message:
        return message

    handler = handled(answer, subject="ask.*", connection="main", to=(), respond=True)
    async with world(handlers=[handler], brokers=two_brokers()) as w:
        shown = w.live.status()["routes"]["route"]
    assert shown["from"] == {"connection": "main", "subject": "ask.*"}
    assert shown["to"] == [{"connection": "main", "subject": "(reply)", "jetstream": False, "routed": 0}]
