"""The error budget: messages of real routes get every fate, and the recording rules are evaluated on a scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from router_trio import Message, Reject
from router_trio.states import RouteState
from router_trio.telemetry.metrics.metric import Sources
from router_trio.telemetry.metrics.page import MetricsPage
from router_trio.testing import FakeBroker
from tests.alerts.tools import RULES, run
from tests.support.eventually import eventually
from tests.support.world import Handled, core, handled, to, world

NOT_DELIVERED = "route:router_messages_not_delivered_total:sum"
TARGET = {"job": "router", "instance": "a:9001"}

ENDS = {b'"routed"': 5, b'"fails once"': 4, b'"rejected"': 3, b'"never"': 2, b"7": 6}
"""How many messages of each payload each route receives. A number does not fit the schema."""

RETRIES = {"attempts": 3, "initial": "1s"}
DEAD = {"dead_letter": {"subject": "dead.letter"}}
ROUTES: dict[str, dict[str, Any]] = {
    "core": {},
    "core by key": {"key": "subject"},
    "core with retry": {"retry": RETRIES},
    "core with dead letters": {"retry": RETRIES, **DEAD},
    "stream": {"retry": RETRIES},
    "stream with dead letters": {"retry": RETRIES, **DEAD},
}


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "words.json"
    path.write_text('{"type": "string"}', encoding="utf-8")
    return str(path)


async def test_only_messages_that_are_finally_not_delivered_burn_the_error_budget(
    autojump_clock: MockClock, tmp_path: Path, schema: str
) -> None:
    broker = FakeBroker()
    broker.add_stream("DEAD", ["dead.>"])
    handlers = [_route(broker, number, name, schema) for number, name in enumerate(ROUTES)]
    async with world(handlers=handlers, brokers={"main": broker}) as w:
        for number in range(len(ROUTES)):
            for payload, count in ENDS.items():
                for _ in range(count):
                    broker.publish(f"in.{number}", payload)
        await eventually(lambda: all(map(_all_settled, w.live.routes)), 60)
        page = MetricsPage(Sources(w.live)).render().decode()
    # A route that retries nothing loses what fails once.
    lost, given_up = ENDS[b'"fails once"'] + ENDS[b'"never"'], ENDS[b'"never"']
    expected = {name: lost if name in ("core", "core by key") else given_up for name in ROUTES}
    _assert_recorded(page, {name.replace(" ", "-"): count for name, count in expected.items()}, tmp_path)


async def test_messages_that_fail_by_their_own_fault_hide_no_others(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A message that fails at two destinations is lost once. One whose dead letter is not stored burns the budget."""
    broker = FakeBroker(max_payload=1000)
    routes = [
        core("in.two", "out.a", "out.b", name="two"),
        core("in.dead", "out.c", name="dead") | {"when": "body.n > 0", **DEAD, "retry": {"not": ["expression"]}},
    ]
    async with world(routes, brokers={"main": broker}) as w:
        two, dead = w.live.routes
        for _ in range(3):
            broker.publish("in.two", bytes(1001))
            broker.publish("in.dead", b"{}" + b" " * 990)  # with its headers, the letter is too large
        await eventually(lambda: two.settled["lost"] == dead.settled["lost"] == 3)
        page = MetricsPage(Sources(w.live)).render().decode()
        assert (dict(two.failed), dead.failed["expression"]) == ({"too_large": 6}, 3)
    _assert_recorded(page, {"two": 0, "dead": 3}, tmp_path)


def _route(broker: FakeBroker, number: int, name: str, schema: str) -> Handled:
    options = {"name": name.replace(" ", "-"), "to": to(f"out.{number}"), "schema": schema, **ROUTES[name]}
    if not name.startswith("stream"):
        return handled(_handler(), subject=f"in.{number}", **options)
    broker.add_stream(f"IN{number}", [f"in.{number}"])
    return handled(_handler(), stream=f"IN{number}", durable="router", **options)


def _all_settled(route: RouteState) -> bool:
    return sum(route.settled[fate] for fate in ("routed", "dead_lettered", "given_up", "lost")) == sum(ENDS.values())


def _handler() -> Callable[[Message], Message]:
    failed: Counter[bytes] = Counter()

    def handle(message: Message) -> Message:
        if message.payload == b'"rejected"':
            raise Reject("no lines")
        # None of these is retried before all of them have failed.
        if message.payload == b'"never"' or (
            message.payload == b'"fails once"' and failed[message.payload] < ENDS[message.payload]
        ):
            failed[message.payload] += 1
            raise ValueError("not now")
        return message

    return handle


def _assert_recorded(page: str, expected: dict[str, int], directory: Path) -> None:
    """Compare what the rules record of a scraped page with the number of messages expected for each route."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    test = {
        "interval": "1m",
        "input_series": [
            {"series": _series(sample.name, sample.labels), "values": f"{sample.value:g}x2"} for sample in samples
        ],
        "promql_expr_test": [
            {
                "expr": NOT_DELIVERED,
                "eval_time": "2m",
                "exp_samples": [
                    {"labels": _series(NOT_DELIVERED, {"connection": "main", "route": route}), "value": count}
                    for route, count in expected.items()
                ],
            }
        ],
    }
    path = directory / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    tested = run("promtool", "test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def _series(name: str, labels: dict[str, str]) -> str:
    text = ", ".join(f'{label}="{value}"' for label, value in (TARGET | labels).items())
    return f"{name}{{{text}}}"
