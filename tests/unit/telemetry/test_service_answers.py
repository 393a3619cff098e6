"""The answers of a router as a NATS service: what ADR-32 requires, the numbers of `/status`, and a bounded size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router_trio.protocol.permissions import SERVICE
from router_trio.states import Held, Partitions
from router_trio.telemetry.http.status import status
from router_trio.telemetry.pieces import complete
from router_trio.telemetry.services.answers import (
    INFO,
    LEFT_OUT,
    MOST_BYTES,
    PING,
    STATS,
    Instance,
    answer_pieces,
    kind_of,
    semantic_version,
)
from tests.support.telemetry_views import View, make_view

INSTANCE = Instance("abc", "0.2.0", 1_700_000_000.5, {"host": "h", "pid": "7"})


def answer(kind: str, view: View, max_payload: int = MOST_BYTES) -> dict[str, Any]:
    payload = complete(answer_pieces(kind, INSTANCE, view, max_payload))
    assert len(payload) <= max_payload
    found: dict[str, Any] = json.loads(payload)
    return found


def routed_view() -> View:
    """Return a view of a route from a subject that routed two messages of four, and of one from a stream."""
    view = make_view(routes=["orders", "payments"])
    orders, payments = view.routes
    orders.source = {"subject": "orders.*", "queue": "routers"}
    payments.source = {"stream": "PAYMENTS", "durable": "router", "filter": ["paid.*", "back.*"]}
    payments.standby = True
    payments.held_by(Held(0, partitions=Partitions(4, (0, 2), (3,), {0: 5}, "ab" * 8, frozenset({"ab" * 8}), ())))
    orders.received = 4
    orders.elapsed.record(0.5)
    orders.elapsed.record(1.5)
    orders.fates["routed"] = 1
    orders.fates["dead_lettered"] = 1
    orders.failed["handler_error"] = 1
    orders.failed_at_last("handler_error", detail="nats://me:secret@host")
    return view


def test_a_ping_has_what_identifies_the_process() -> None:
    assert answer(PING, make_view()) == {
        "type": "io.nats.micro.v1.ping_response",
        "name": SERVICE,
        "id": "abc",
        "version": "0.2.0",
        "metadata": {"router": "test-router", "host": "h", "pid": "7"},
    }


def test_info_has_an_endpoint_for_each_route() -> None:
    found = answer(INFO, routed_view())
    assert found["type"] == "io.nats.micro.v1.info_response"
    assert found["description"]
    orders, payments = found["endpoints"]
    assert (orders["name"], orders["subject"], orders["queue_group"]) == ("orders", "orders.*", "routers")
    assert orders["metadata"] == {"connection": "main", "subject": "orders.*", "queue": "routers", "to": ""}
    assert (payments["name"], payments["subject"], payments["queue_group"]) == ("payments", "paid.*, back.*", "")
    assert payments["metadata"]["stream"] == "PAYMENTS"
    assert all(isinstance(value, str) for one in found["endpoints"] for value in one["metadata"].values())


def test_stats_have_the_numbers_of_status() -> None:
    view = routed_view()
    found = answer(STATS, view)
    assert found["type"] == "io.nats.micro.v1.stats_response"
    assert found["started"] == "2023-11-14T22:13:20.500000Z"
    orders, payments = found["endpoints"]
    shown = status(view, 0.0)["routes"]["orders"]
    assert orders["num_requests"] == shown["received"] == 4
    assert orders["num_errors"] == shown["failed"] + shown["dead_lettered"] == 2
    assert orders["data"] == shown["ledger"] | {"state": shown["state"]}
    assert (orders["processing_time"], orders["average_processing_time"]) == (2_000_000_000, 1_000_000_000)
    assert orders["last_error"].startswith("handler_error: ")
    assert "secret" not in orders["last_error"]
    assert (payments["last_error"], payments["average_processing_time"]) == ("", 0)
    assert payments["data"]["state"] == "standby"
    shown = status(view, 0.0)["routes"]["payments"]["partitions"]
    assert payments["data"]["partitions"] == shown
    assert (shown["count"], shown["led"], shown["wanted"], shown["lag"]) == (4, [0, 2], [3], {"0": 5})
    assert "partitions" not in orders["data"]


@pytest.mark.parametrize("kind", [INFO, STATS])
def test_an_answer_fits_and_says_how_many_endpoints_it_leaves_out(kind: str) -> None:
    view = make_view(routes=[f"route-{number}" for number in range(1000)])
    found = answer(kind, view, 10_000)
    left_out = int(found["metadata"][LEFT_OUT])
    assert 0 < left_out < 1000
    assert len(found["endpoints"]) == 1000 - left_out
    assert LEFT_OUT not in answer(kind, view, MOST_BYTES)["metadata"]


def test_an_answer_is_bounded_where_the_server_takes_more() -> None:
    view = make_view(routes=[f"route-{number}" for number in range(5000)])
    assert len(complete(answer_pieces(STATS, INSTANCE, view, 64 * MOST_BYTES))) <= MOST_BYTES


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        (b"$SRV.PING", PING),
        (b"$SRV.INFO.router-trio", INFO),
        (b"$SRV.STATS.router-trio.abc", STATS),
        (b"$SRV.SCHEMA", None),
        (b"$SRV.ping", None),
        (b"$SRV.\xff", None),
        (b"$SRV", None),
    ],
)
def test_the_kind_of_a_request_is_in_its_subject(subject: bytes, kind: str | None) -> None:
    assert kind_of(subject) == kind


@pytest.mark.parametrize(
    ("version", "semantic"),
    [
        ("0.2.0", "0.2.0"),
        ("1.2", "1.2.0"),
        ("0", "0.0.0"),
        ("1.2rc1", "1.2.0-rc1"),
        ("0.3.0.dev4+g1a2b", "0.3.0-dev4-g1a2b"),
        ("unknown", "0.0.0"),
    ],
)
def test_the_version_is_semantic(version: str, semantic: str) -> None:
    assert semantic_version(version) == semantic
