"""The table of `router-trio top`: what is not well is first, it fits any terminal, and shows rates."""

from __future__ import annotations

import copy
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from router_trio.cli.colours import Colours
from router_trio.cli.top.rates import UNBALANCED, Overview, duration, number, overview
from router_trio.cli.top.table import LEAST_WIDTH, lines
from router_trio.telemetry.http.status import status
from tests.support.telemetry_views import View, make_view

NOW = datetime(2026, 11, 29, 12, 0, 10, tzinfo=UTC)
PLAIN, PAINTED = Colours(enabled=False), Colours(enabled=True)
ESCAPES = re.compile(r"\x1b\[\d*m")


def route(received: int = 100, *, in_hand: int = 0, **more: Any) -> dict[str, Any]:
    fates = dict.fromkeys(("routed", "filtered", "dead_lettered", "given_up", "returned", "duplicate", "lost"), 0)
    settled = fates | more.pop("settled", {})
    settled["routed"] += received - in_hand - sum(settled.values())
    ledger = {"received": received, "in_hand": in_hand, "settled": settled}
    retrying = {"count": 0, "oldest_seconds": 0.0}
    found = {"state": "running", "failed": 0, "last_failure": None, "retrying": retrying, "ledger": ledger}
    return found | more


def connection(state: str = "connected", **more: Any) -> dict[str, Any]:
    return {"state": state, "server": "nats://10.0.0.7:4222", "pending": 0, "in_flight": 0, "last_error": None} | more


def answer(routes: dict[str, Any], connections: dict[str, Any] | None = None, uptime: float = 100.0) -> dict[str, Any]:
    connections = connections or {"main": connection()}
    ledger = {"accepted": 10, "pending": 0, "in_flight": 0, "settled": {"acked": 10, "dropped": 0, "failed": 0}}
    return {
        "name": "orders-router",
        "version": "0.2.0",
        "uptime_seconds": uptime,
        "connections": connections,
        "routes": routes,
        "ledger": {name: copy.deepcopy(ledger) for name in connections},
    }


def after(routes: dict[str, Any], before: dict[str, Any] | None = None, seconds: float = 2.0) -> Overview:
    earlier = None if before is None else answer(before, uptime=98.0)
    return overview(answer(routes), earlier, seconds, NOW)


FAILED = {
    "at": "2026-11-29T12:00:00Z",
    "reason": "handler_error",
    "detail": "ValueError",
    "subject": "orders.7",
    "sequence": 7,
    "attempt": 1,
    "place": "shop.py:7",
}


def test_rates_are_those_between_two_readings() -> None:
    before = {"a": route(100, settled={"lost": 10}, failed=10)}
    (found,) = after({"a": route(300, in_hand=40, settled={"lost": 20}, failed=30)}, before).routes
    assert (found.received_rate, found.settled_rate, found.failed_rate, found.lost_rate) == (100, 80, 10, 5)
    (first,) = after({"a": route(300)}).routes
    assert (first.received_rate, first.settled_rate) == (None, None)
    (restarted,) = after({"a": route(5)}, before).routes
    assert restarted.received_rate is None


def test_routes_that_are_not_well_are_first_and_then_the_busiest() -> None:
    before = {name: route(100) for name in ("slow", "busy", "failing", "retried", "away", "wrong", "standby")}
    routes = {
        "slow": route(110),
        "busy": route(500),
        "failing": route(120, settled={"dead_lettered": 2}, failed=2, last_failure=FAILED),
        "retried": route(110, retrying={"count": 3, "oldest_seconds": 9.0}),
        "away": route(100, state="paused", reason="the durable is paused until 13:00"),
        "wrong": route(100, in_hand=0),
        "standby": route(100, state="starting", standby=True),
    }
    routes["wrong"]["ledger"]["received"] = 99
    found = after(routes, before)
    assert [one.name for one in found.routes] == ["away", "wrong", "failing", "retried", "busy", "slow", "standby"]
    assert [one.trouble for one in found.routes[:2]] == ["the durable is paused until 13:00", UNBALANCED]
    assert [one.worry for one in found.routes[2:4]] == [
        "dead-lettered: 1/s",
        "being retried: 3",
    ]
    assert found.unwell == 4
    text = "\n".join(lines(found, 80, None, PLAIN))
    assert "4 not well" in text
    assert "last: handler_error on orders.7: ValueError" in text
    assert "10s handler_error" in "\n".join(lines(found, 120, None, PLAIN))


def test_reasons_of_readiness_that_the_status_lacks_are_shown() -> None:
    stalled = "its handler has not returned for 30 s: 1 message waits"
    unready = [
        {"route": "a", "reason": stalled},
        {"connection": "main", "reason": "no PubAck"},
        {"router": "r", "reason": "starting"},
    ]
    found = overview(answer({"a": route(1), "b": route(1)}), None, 1.0, NOW, unready)
    assert [(one.name, one.trouble) for one in found.routes] == [("a", stalled), ("b", None)]
    assert [one.trouble for one in found.connections] == ["no PubAck"]
    assert "all well" not in "\n".join(lines(found, 80, None, PLAIN))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    routes = {f"route-{'x' * size}\x1b[2J": route(10 ** (size % 9), last_failure=FAILED) for size in range(0, 120, 7)}
    routes["away"] = route(1, reason="because " * 50, behind={"messages": 10**12, "seconds": 10**9})
    connections = {"main": connection("reconnecting", last_error="refused " * 50, server=None), "c" * 90: connection()}
    found = overview(answer(routes, connections), None, 1.0, NOW)
    plain, painted = (lines(found, width, None, colours) for colours in (PLAIN, PAINTED))
    assert max(map(len, plain)) <= max(width, LEAST_WIDTH)
    assert "\x1b" not in "".join(plain)
    assert [ESCAPES.sub("", line) for line in painted] == plain
    assert plain != painted


def test_a_low_terminal_shows_what_is_not_well_and_how_many_more_there_are() -> None:
    routes = {f"r{number}": route(number) for number in range(500)} | {"away": route(1, reason="gone")}
    shown = lines(after(routes), 80, 24, PLAIN)
    assert len(shown) == 24
    assert shown[6].startswith("away")
    assert shown[-1] == "and 485 more, 0 of them not well"
    assert len(lines(after(routes), 80, None, PLAIN)) == 500 + 8


def test_it_reads_what_the_status_page_answers() -> None:
    view: View = make_view(["main"], ["eu"])
    view.routes[0].received = 7
    found = overview(status(view, 3.0), status(view, 1.0), 2.0, NOW)
    assert [one.name for one in found.routes] == ["eu"]
    assert [one.name for one in found.connections] == ["main"]
    assert lines(found, 80, 24, PLAIN)


LARGE = [(12_345, "12.3k"), (123_456, "123k"), (999_900, "1.0M"), (5e6, "5.0M"), (1e12, "1.0T"), (10**17, "100P")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.04, "0.0"),
        (3, "3"),
        (3.14, "3.1"),
        (12.3, "12"),
        (9999, "9,999"),
        *LARGE,
    ],
)
def test_numbers_have_five_characters_at_most(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0s"), (59, "59s"), (119, "2m"), (7200, "2h"), (200_000, "2d")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "reason",
    [
        {"router": "orders-router", "reason": "its loop is blocked"},
        {"connection": "main", "reason": "stream ORDERS is missing"},
        {"connection": "gone", "reason": "away"},
        {"route": "copy", "reason": "its destination does not confirm"},
        {"route": "gone", "reason": "starting"},
        {"worker": 2, "reason": "starting"},
        {"reason": "reasons are hidden from this host"},
    ],
)
def test_a_router_that_is_not_ready_is_not_well(reason: dict[str, Any]) -> None:
    found = overview(answer({"copy": route()}), None, 2.0, NOW, [reason])
    shown = "\n".join(lines(found, 120, None, PLAIN))
    assert "all well" not in shown
    assert "not ready" in shown
    assert reason["reason"] in shown
    healthy = overview(answer({"copy": route()}), None, 2.0, NOW)
    assert "all well" in "\n".join(lines(healthy, 120, None, PLAIN))


def test_all_reasons_of_a_connection_are_shown() -> None:
    reasons = [{"connection": "main", "reason": f"stream {name} is missing"} for name in ("ORDERS", "COPIES")]
    shown = "\n".join(lines(overview(answer({"copy": route()}), None, 2.0, NOW, reasons), 120, None, PLAIN))
    assert "ORDERS" in shown
    assert "COPIES" in shown


def test_a_lost_connection_is_not_well() -> None:
    found = overview(answer({"copy": route()}, {"main": connection("reconnecting")}), None, 2.0, NOW)
    assert "all well" not in "\n".join(lines(found, 120, None, PLAIN))


def test_dead_letters_are_not_lost() -> None:
    settled = {"dead_lettered": 7, "lost": 2, "given_up": 1}
    heading, row = lines(after({"copy": route(100, settled=settled)}), 120, None, PLAIN)[-2:]
    cells = dict(zip(heading.split()[1:], row.split()[1:], strict=False))
    assert (cells["LOST"], cells["DEAD"]) == ("3", "7")
