"""`router-trio explain`, called without a process and without a server."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from router_trio import Message
from router_trio.cli.explain_message import explain_message
from router_trio.cli.explanation import Explanation
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import Settings
from router_trio.subjects.partitions import Partitioning


def explained(subject: str, *routes: dict[str, Any], payload: bytes = b"") -> Explanation:
    connections = {name: {"servers": ["nats://127.0.0.1:4222"]} for name in ("main", "other")}
    settings = Settings(connections=connections, routes=list(routes))
    return explain_message(compile_routes(settings), subject, payload=payload)


def route(name: str, source: dict[str, Any], *to: str, **rest: Any) -> dict[str, Any]:
    destinations = [{"connection": "other", "subject": subject} for subject in to]
    return {"name": name, "from": {"connection": "main", **source}, "to": destinations, **rest}


def test_json_has_every_matching_route_in_order_with_final_subjects() -> None:
    found = explained(
        "orders.7.created",
        route("second", {"subject": "orders.*.created"}, "crm.{{wildcard(1)}}", "log.created"),
        route("not", {"subject": "orders.*"}, "never.$1"),
        route("first", {"subject": "orders.>"}, "all.>"),
    )
    assert found.as_json() == {
        "subject": "orders.7.created",
        "routes": [
            {
                "name": "second",
                "destinations": [
                    {"connection": "other", "subject": "crm.7"},
                    {"connection": "other", "subject": "log.created"},
                ],
            },
            {"name": "first", "destinations": [{"connection": "other", "subject": "all.7.created"}]},
        ],
    }


def test_without_a_match_the_patterns_of_all_routes_are_listed() -> None:
    found = explained("nobody.asks", route("orders", {"subject": "orders.*", "queue": "workers"}, "eu.$1"))
    assert found.as_json() == {"subject": "nobody.asks", "routes": []}
    assert list(found.lines()) == [
        "no route takes it; the routes take:",
        "  orders: main: orders.*, queue group workers",
    ]


def test_a_configuration_without_routes() -> None:
    found = explained("nobody.asks")
    assert found.as_json() == {"subject": "nobody.asks", "routes": []}
    assert list(found.lines()) == ["no route takes it: there are no routes"]


def test_a_stream_without_filter_depends_on_what_the_stream_holds() -> None:
    found = explained("a.b", route("archive", {"stream": "ORDERS", "durable": "router"}, "archive.>"))
    assert list(found.lines()) == [
        "route archive takes it from main: stream ORDERS, if stream ORDERS takes this subject",
        "  -> other: archive.a.b (JetStream, waits for the PubAck)",
    ]


def test_a_stream_with_filter_takes_only_what_matches_it() -> None:
    archive = route("archive", {"stream": "ORDERS", "durable": "router", "filter": "a.*"}, "archive.$1")
    assert list(explained("a.b", archive).lines()) == [
        "route archive takes it from main: stream ORDERS, filter a.*",
        "  -> other: archive.b (JetStream, waits for the PubAck)",
    ]
    assert explained("b.b", archive).as_json()["routes"] == []


def test_a_jetstream_destination_and_a_random_one_are_distinguished() -> None:
    source = {"connection": "main", "subject": "a.*"}
    to = [
        {"connection": "other", "subject": "kept.$1", "jetstream": True},
        {"connection": "other", "subject": "shard.{{random(1)}}"},
    ]
    assert list(explained("a.b", {"name": "r", "from": source, "to": to}).lines())[1:] == [
        "  -> other: kept.b (JetStream, waits for the PubAck)",
        "  -> other: shard.0 (core publish, random for each message)",
        "     note: random needs nats-server 2.12 in a mapping of the server's own; here the router computes it, with "
        "every server",
    ]


def test_a_handler_that_can_not_be_imported_is_named() -> None:
    found = explained("a.b", route("r", {"subject": "a.*"}, "c.$1", handler="no.such.module:function"))
    assert list(found.lines())[-3:-1] == [
        "  handler no.such.module:function may change the message or filter it out",
        "    its types are unknown: handler 'no.such.module:function': can't import 'no.such.module': "
        "No module named 'no'; is it on sys.path?",
    ]
    assert set(found.as_json()["routes"][0]["handler"]) == {"name", "problem"}


class Order(BaseModel):
    id: int


def typed(order: Order) -> list[int]:
    raise AssertionError("explain calls no handler")


def untyped(message: Message) -> Message | None:
    raise AssertionError("explain calls no handler")


def test_the_schemas_of_a_handler_are_shown() -> None:
    found = explained("a.b", route("r", {"subject": "a.*"}, "c.$1", handler=f"{__name__}:typed"))
    body = {"properties": {"id": {"title": "Id", "type": "integer"}}, "required": ["id"], "title": "Order"}
    answer = {"items": {"type": "integer"}, "type": "array"}
    assert found.as_json()["routes"][0]["handler"] == {
        "name": f"{__name__}:typed",
        "body": body | {"type": "object"},
        "answer": answer,
    }
    lines = list(found.lines())
    assert lines[1] == f"  handler {__name__}:typed may change the message or filter it out"
    assert lines[2].startswith('    body: {"properties": {"id": {')
    assert lines[3] == '    answer: {"items": {"type": "integer"}, "type": "array"}'


def test_a_handler_of_messages_has_no_schemas() -> None:
    found = explained("a.b", route("r", {"subject": "a.*"}, "c.$1", handler=f"{__name__}:untyped"))
    assert found.as_json()["routes"][0]["handler"] == {"name": f"{__name__}:untyped"}
    assert len(list(found.lines())) == 3


def test_data_that_a_handler_does_not_take_fails() -> None:
    taken = route("r", {"subject": "a.*"}, "c.$1", handler=f"{__name__}:typed")
    assert explained("a.b", taken, payload=b'{"id": 7}').difference(["c.b"]) is None
    found = explained("a.b", taken, payload=b'{"id": "x"}')
    detail = "$.id: Input should be a valid integer, unable to parse string as an integer"
    assert found.as_json()["routes"][0]["error"] == {"reason": "invalid_body", "detail": detail}
    assert list(found.lines())[-1] == f"  fails: {detail}"
    assert found.difference(["c.b"]) == "the message fails in r"


def test_a_mapping_that_refuses_this_subject_is_shown_as_failing() -> None:
    found = explained("a.--b", route("r", {"subject": "a.*"}, "c.{{split(1,-)}}.d", "fine"))
    first, second = found.as_json()["routes"][0]["destinations"]
    assert first["subject"] is None
    assert "'c..b.d'" in first["error"]
    assert second == {"connection": "other", "subject": "fine"}
    assert list(found.lines())[1].startswith("  -> other: fails: subject 'a.--b' maps to 'c..b.d'")


def test_a_subject_reserved_for_the_server_is_refused_as_the_router_would() -> None:
    found = explained("in.$JS.API.STREAM.DELETE.S", route("open", {"subject": "in.>"}, ">", "safe.>"))
    refused, sent = found.as_json()["routes"][0]["destinations"]
    assert refused["subject"] is None
    assert "reserved for NATS itself" in refused["error"]
    assert sent == {"connection": "other", "subject": "safe.$JS.API.STREAM.DELETE.S"}


def test_the_partition_of_a_message_is_shown_with_its_durable() -> None:
    source = {"stream": "ORDERS", "durable": "router", "filter": "orders.*.*", "partitions": 16, "partition_by": [1]}
    found = explained("orders.7.new", route("orders", source, "eu.$1"))
    number = Partitioning(16, (1,), ("orders.*.*",)).partition_of("orders.7.new")
    (shown,) = found.as_json()["routes"]
    durable = f"router-{number}"
    assert shown["partition"] == {
        "number": number,
        "count": 16,
        "durable": durable,
        "stream": "ORDERS",
        "copy": "ORDERS-router",
    }
    assert (
        f"  partition {number} of 16: durable {durable} of stream ORDERS-router, a copy of ORDERS "
        "(of ORDERS if that has the partitions itself)"
    ) in list(found.lines())
