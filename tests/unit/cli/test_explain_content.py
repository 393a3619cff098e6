"""`router-trio explain` for routes that decide by content, and its expectations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router_trio.cli import main
from router_trio.cli.explain_message import explain_message
from router_trio.cli.explanation import Explanation
from router_trio.protocol.headers import Headers, encode
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import Settings

SOURCE = {"subject": "orders.*"}


def route(*to: dict[str, Any], name: str = "r", source: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    destinations = [{"subject": f"out.{index}", **one} for index, one in enumerate(to)]
    return {"name": name, "from": source or SOURCE, "to": destinations, **rest}


def explained(
    *routes: dict[str, Any], body: Any = None, headers: dict[str, str] | None = None, payload: bytes | None = None
) -> Explanation:
    settings = Settings(connections={"main": {"servers": ["nats://h"]}}, routes=list(routes))
    sent = json.dumps(body).encode() if payload is None else payload
    return explain_message(compile_routes(settings), "orders.7", encode(Headers(headers)), sent)


def only(found: Explanation) -> dict[str, Any]:
    [one] = found.as_json()["routes"]
    return one  # type: ignore[no-any-return]


def test_a_when_that_holds_is_shown_with_its_parts() -> None:
    found = explained(
        route({}, when='headers["region"] == "eu" && body.total > 100'), body={"total": 150}, headers={"region": "eu"}
    )
    assert only(found) == {
        "name": "r",
        "destinations": [{"connection": "main", "subject": "out.0"}],
        "strategy": "all",
        "when": {
            "expression": 'headers["region"] == "eu" && body.total > 100',
            "value": True,
            "parts": [
                {"expression": 'headers["region"]', "value": "eu"},
                {"expression": 'headers["region"] == "eu"', "value": True},
                {"expression": "body.total", "value": 150},
                {"expression": "body.total > 100", "value": True},
            ],
        },
    }
    assert list(found.lines()) == [
        "route r takes it from main: orders.*",
        '  when headers["region"] == "eu" && body.total > 100: true',
        '      headers["region"]: "eu"',
        '      headers["region"] == "eu": true',
        "      body.total: 150",
        "      body.total > 100: true",
        "  -> main: out.0 (core publish)",
    ]


def test_a_when_that_does_not_hold_filters_the_message() -> None:
    found = explained(route({}, when="body.total > 100"), body={"total": 5})
    output = only(found)
    assert (output["filtered"], output["destinations"], output["when"]["value"]) == ("when", [], False)
    assert list(found.lines())[-1] == "  filtered: its when is false"
    assert found.difference([]) is None


@pytest.mark.parametrize(("payload", "detail"), [(b"x", "JSON"), (b"{}", "total"), (b'{"total": "5"}', "string")])
def test_a_when_that_fails_fails_the_message(payload: bytes, detail: str) -> None:
    found = explained(route({}, when="body.total > 100"), payload=payload)
    output = only(found)
    assert output["error"]["reason"] == "expression"
    assert detail in output["error"]["detail"]
    assert output["destinations"] == []
    assert "filtered" not in output
    assert found.difference(["out.0"]) == "the message fails in r"
    assert list(found.lines())[-1] == f"  fails: {output['error']['detail']}"


def test_first_match_explains_each_destination() -> None:
    to: Any = ({"when": 'body.p == "high"'}, {"when": 'body.p == "low"'}, {})
    found = explained(route(*to, strategy="first_match"), body={"p": "low"})
    output = only(found)
    assert [one["subject"] for one in output["destinations"]] == ["out.1"]
    assert output["destinations"][0]["when"]["value"] is True
    assert [(one["template"], one["why"]) for one in output["not_taken"]] == [
        ("out.0", "its when is false"),
        ("out.2", "an earlier destination takes it"),
    ]
    assert "  not to main: out.2: an earlier destination takes it" in list(found.lines())


def test_a_message_that_no_destination_takes_is_unmatched() -> None:
    found = explained(route({"when": "false"}, {"when": "body.a == 1"}, {"mirror": 1}), body={"a": 2})
    output = only(found)
    assert (output["filtered"], output["destinations"]) == ("unmatched", [])
    assert output["not_taken"][2]["why"] == "a mirror gets a copy only if another destination gets the message"
    assert list(found.lines())[-1] == "  filtered: no destination takes it"


def test_one_failing_when_of_a_destination_stops_the_others_as_well() -> None:
    found = explained(route({"when": "body.a == 1"}, {"when": "body.b == 1"}, {}), body={"a": 1})
    output = only(found)
    assert output["destinations"] == []
    assert [one["why"] for one in output["not_taken"]] == [
        "the message fails",
        "its when fails, so the message fails",
        "the message fails",
    ]


def test_decisions_that_depend_on_more_than_the_message_are_named() -> None:
    found = explained(
        route({"weight": 3}, {}, name="w", strategy="weighted"),
        route({}, {}, name="f", strategy="fallback"),
        route({}, {"mirror": 0.25}, name="m"),
    )
    output = [
        [(one["subject"], one.get("depends_on"), one.get("share")) for one in route["destinations"]]
        for route in found.as_json()["routes"]
    ]
    assert output == [
        [("out.0", "weight", 0.75), ("out.1", "weight", 0.25)],
        [("out.0", "health", None), ("out.1", "health", None)],
        [("out.0", None, None), ("out.1", "mirror", 0.25)],
    ]
    lines = list(found.lines())
    assert "  -> main: out.0 (core publish, 0.75 of the messages by weight)" in lines
    assert (
        "  -> main: out.1 (core publish, if it is the first destination that is connected and accepts messages)"
        in lines
    )
    assert "  -> main: out.1 (core publish, mirror of 0.25 of the messages)" in lines


def test_sticky_shows_the_key_and_the_destination_that_the_router_would_choose() -> None:
    configured = route({}, {}, {}, strategy="sticky", key="body.id")
    found = explained(configured, body={"id": "c-7"})
    output = only(found)
    [taken] = output["destinations"]
    settings = Settings(connections={"main": {"servers": ["nats://h"]}}, routes=[configured])
    [plan] = compile_routes(settings)
    from router_trio.expressions.message import Facts

    [index] = plan.strategy().choose(Facts("orders.7", b"", b'{"id": "c-7"}', plan.reader()))
    assert (taken["subject"], taken["depends_on"]) == (f"out.{index}", "key")
    assert output["key"] == {"expression": "body.id", "value": "c-7"}
    assert {one["why"] for one in output["not_taken"]} == {"the key selects another destination"}


def test_transformed_payload_and_headers_are_shown() -> None:
    to = {
        "jetstream": True,
        "payload": '{"total": double(body.total) * 100.0}',
        "ttl": "1h",
        "headers": {"set": {"X-Region": 'headers["region"]'}, "remove": ["X-Internal"]},
    }
    came = {"region": "eu", "X-Internal": "secret", "Nats-Rollup": "all"}
    found = explained(route(to), body={"total": 150}, headers=came)
    [taken] = only(found)["destinations"]
    assert taken == {
        "connection": "main",
        "subject": "out.0",
        "payload": '{"total":15000.0}',
        "headers": {"region": ["eu"], "X-Region": ["eu"], "Nats-TTL": ["3600s"]},
    }
    assert list(found.lines())[-4:] == [
        '     payload: {"total":15000.0}',
        "     header region: eu",
        "     header X-Region: eu",
        "     header Nats-TTL: 3600s",
    ]


def test_a_transform_that_fails_is_shown_as_failing() -> None:
    found = explained(route({"payload": "body.nothing"}, {}), body={})
    first, second = only(found)["destinations"]
    assert first["subject"] is None
    assert "nothing" in first["error"]
    assert second["subject"] == "out.1"
    assert found.difference(["out.1"]) == "the message fails in r"


def test_a_mirror_that_fails_fails_nothing() -> None:
    found = explained(route({}, {"mirror": 1, "payload": "body.nothing"}), body={})
    assert found.difference(["out.0"]) is None


def test_values_that_only_a_stream_knows_are_assumed_and_named() -> None:
    source = {"stream": "S", "durable": "d", "filter": "orders.*"}
    found = explained(route({}, source=source, when="deliveries == 1 && sequence == 1"))
    assert only(found)["assumed"] == {"sequence": 1, "deliveries": 1, "time": "now"}
    assert "  assumed: the first message of its stream, stored now, delivered once" in list(found.lines())
    assert "assumed" not in only(explained(route({}, source=source, when='stream == "S"')))


@pytest.mark.parametrize(
    ("expected", "difference"),
    [
        (["a", "w0", "f1"], None),
        (["f0", "a", "w1", "m"], None),
        (["a", "w0", "w1", "f0"], "it is not sent to w1"),
        (["a", "w0"], "it is sent to f0"),
        (["a", "w0", "f0", "f1"], "it is not sent to f1"),
        (["a", "a", "w0", "f0"], "it is not sent to a"),
        ([], "it is sent to a, f0, w0"),
    ],
)
def test_expectations_leave_open_what_the_message_does_not_decide(expected: list[str], difference: str | None) -> None:
    found = explained(
        route({"subject": "a"}, {"subject": "m", "mirror": 0.5}, name="a"),
        route({"subject": "w0"}, {"subject": "w1"}, name="w", strategy="weighted"),
        route({"subject": "f0"}, {"subject": "f1"}, name="f", strategy="fallback"),
    )
    assert found.difference(expected) == difference


# --- the command ---

CONFIG = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "orders"
when = 'body.total > 100'
from = { subject = "orders.*" }
to = [{ subject = "eu.$1" }, { subject = "log" }]
"""


@pytest.mark.parametrize(
    ("data", "expect", "code", "output"),
    [
        ('{"total": 150}', ["eu.7", "log"], 0, ""),
        ('{"total": 150}', ["log"], 1, "router-trio: not as expected: it is sent to eu.7\n"),
        ('{"total": 150}', ["eu.7", "log", "x"], 1, "router-trio: not as expected: it is not sent to x\n"),
        ('{"total": 150}', [""], 1, "router-trio: not as expected: it is sent to eu.7, log\n"),
        ('{"total": 5}', [""], 0, ""),
        ('{"total": 5}', ["log"], 1, "router-trio: not as expected: it is not sent to log\n"),
        ("", ["log"], 1, "router-trio: not as expected: the message fails in orders\n"),
        ("", [], 0, ""),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_command_expects_subjects(
    data: str,
    expect: list[str],
    code: int,
    output: str,
    form: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "router.toml"
    config.write_text(CONFIG)
    options = [word for subject in expect for word in ("--expect", subject)]
    assert main(["explain", str(config), "orders.7", "--data", data, *options, *form]) == code
    out, error = capsys.readouterr()
    assert error == output
    assert json.loads(out)["subject"] == "orders.7" if form else out.startswith("message orders.7: ")


def test_check_prints_the_picture_of_a_wrong_expression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "router.toml"
    config.write_text(CONFIG.replace("body.total", "bdy.total"))
    assert main(["check", str(config)]) == 78
    assert capsys.readouterr().out.splitlines() == [
        f"{config}: routes[0].when: there is no variable 'bdy': did you mean 'body'? (line 6, route 'orders')",
        "  bdy.total > 100",
        "  ^^^",
    ]


def test_a_limit_and_a_breaker_are_shown() -> None:
    limit = {"rate": "30000/m", "per": 'headers["tenant"]'}
    found = explained(
        route({"jetstream": True, "breaker": {"failures": 1, "pause": "1m"}}, limit=limit), headers={"tenant": "acme"}
    )
    assert only(found) == {
        "name": "r",
        "destinations": [{"connection": "main", "subject": "out.0", "breaker": {"failures": 1, "pause": "1m"}}],
        "limit": {
            "rate": "30000/m",
            "burst": 500,
            "per": {"expression": 'headers["tenant"]', "value": "acme"},
        },
    }
    assert list(found.lines()) == [
        "route r takes it from main: orders.*",
        '  limit 30000/m, at most 500 at once, for each headers["tenant"]',
        '    each headers["tenant"]: "acme"',
        "  -> main: out.0 (JetStream, waits for the PubAck)",
        "     breaker: a failure opens it, then a message tries every 1m",
    ]


def test_a_message_without_a_value_for_its_limit_fails() -> None:
    found = explained(route({}, limit={"rate": "1/s", "per": "body.tenant"}), body={})
    assert found.routes[0].fails
    assert not only(found)["destinations"]
