"""Limits and breakers of routes: what is accepted, and what is refused with its key and its cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.settings import Settings
from router_trio.settings.schema import file_schema
from router_trio.settings.units import MOST_MESSAGES, Rate, format_rate, parse_rate
from tests.unit.settings.problems import one_route, problems

TO: dict[str, Any] = {"subject": "out", "jetstream": True}


def breaker(**keys: Any) -> list[dict[str, Any]]:
    return [TO | {"breaker": keys}]


# --- rates ---


@pytest.mark.parametrize(
    ("text", "rate"), [("500/s", Rate(500, 1)), ("30000/m", Rate(30_000, 60)), ("10/h", Rate(10, 3600))]
)
def test_rate_is_read_and_written(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate
    assert format_rate(rate) == text


@given(st.integers(1, MOST_MESSAGES), st.sampled_from([1, 60, 3600]))
def test_every_rate_survives_being_written_and_read(messages: int, seconds: int) -> None:
    assert parse_rate(format_rate(Rate(messages, seconds))) == Rate(messages, seconds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("500", "'500' has no unit; write '500/s', '500/m' or '500/h'"),
        ("0.5/s", "'0.5/s' is no whole number of messages; write '0.5/s' as '30/m'"),
        ("0/s", "a rate of 0 messages is impossible; it must be from 1 to"),
        ("9999999999/s", "a rate of 9999999999 messages is impossible"),
        ("500 per second", "'500 per second' is not a rate; write messages and a unit of time, such as '500/s'"),
        ("500/ms", "'500/ms' is not a rate"),
        ("-1/s", "'-1/s' is not a rate"),
        ("5/d", "'5/d' is not a rate"),
        ("5/s\n", "'5/s\\n' is not a rate"),
        ("٣/s", "'٣/s' is not a rate"),
        (500, "must be a rate in quotes, such as '500/s'"),
        (Rate(5, 2), "a rate in 2 seconds can't be written"),
    ],
)
def test_a_bad_rate_is_refused(text: Any, message: str) -> None:
    found = problems(one_route(limit={"rate": text}))
    assert set(found) == {"routes[0].limit.rate"}
    assert found["routes[0].limit.rate"].startswith(message)


# --- sections ---


def test_limits_and_breakers_are_read_and_absent_by_default() -> None:
    limit = {"rate": "500/s", "burst": 100, "per": 'headers["tenant"]'}
    [route] = one_route(limit=limit, to=breaker(failures=3, pause="1m"))().routes
    assert route.limit is not None
    assert (route.limit.rate, route.limit.burst, route.limit.per) == (Rate(500, 1), 100, 'headers["tenant"]')
    assert route.to[0].breaker is not None
    assert (route.to[0].breaker.failures, route.to[0].breaker.pause) == (3, 60.0)
    [route] = one_route(limit={"rate": Rate(10, 3600)}, to=breaker())().routes
    assert route.limit is not None
    assert (route.limit.burst, route.limit.per) == (None, None)
    assert route.to[0].breaker is not None
    assert (route.to[0].breaker.failures, route.to[0].breaker.pause) == (5, 10.0)
    [route] = one_route()().routes
    assert (route.limit, route.to[0].breaker) == (None, None)


@pytest.mark.parametrize(("rate", "burst"), [("500/s", 500), ("30000/m", 500), ("59/m", 1), ("10/h", 1)])
def test_the_default_burst_is_the_messages_of_a_second(rate: str, burst: int) -> None:
    [route] = one_route(limit={"rate": rate})().routes
    assert route.limit is not None
    assert route.limit.most_at_once == burst


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"limit": {}}, "limit.rate", "missing, and has no default"),
        ({"limit": "500/s"}, "limit", 'must be a table: write limit = { rate = "..." }'),
        ({"limit": {"rate": "5/s", "brust": 3}}, "limit.brust", "unknown key; did you mean 'burst'?"),
        ({"limit": {"rate": "5/s", "burst": 0}}, "limit.burst", "must be at least 1"),
        ({"limit": {"rate": "5/s", "per": ""}}, "limit.per", "must not be empty"),
        ({"limit": {"rate": "5/s", "per": "tenant"}}, "limit.per", "there is no variable 'tenant'"),
        (
            {"limit": {"rate": "5/s", "per": "tokens"}},
            "limit.per",
            "this is of type list(string), which can't be a key",
        ),
        ({"limit": {"rate": "5/s", "per": "1 + 1"}}, "limit.per", "this is the same for every message"),
        ({"limit": {"rate": "5/s", "per": "sequence"}}, "limit.per", "there is no variable 'sequence': only messages"),
        ({"to": breaker(failures=0)}, "to[0].breaker.failures", "must be at least 1"),
        ({"to": breaker(pause="0s")}, "to[0].breaker.pause", "0s is too short; at least 100ms"),
        ({"to": breaker(puase="1s")}, "to[0].breaker.puase", "unknown key; did you mean 'pause'?"),
        ({"to": [{"subject": "out", "breaker": {}}]}, "to[0].breaker", "only a stream says whether it took a message"),
        ({"to": [TO, TO | {"mirror": 0.1, "breaker": {}}]}, "to[1].breaker", "a mirror that fails delays nothing"),
    ],
)
def test_a_bad_limit_or_breaker_is_refused(changes: dict[str, Any], key: str, message: str) -> None:
    found = problems(one_route(**changes))
    assert set(found) == {f"routes[0].{key}"}
    assert found[f"routes[0].{key}"].startswith(message)


def test_a_refused_limit_hides_no_other_mistake() -> None:
    found = problems(one_route(limit={"rate": "5"}, when="1", to=[{"subject": "out", "breaker": {}}]))
    assert set(found) == {"routes[0].limit.rate", "routes[0].when", "routes[0].to[0].breaker"}


def test_a_limit_of_a_route_from_a_stream_may_use_its_variables() -> None:
    stream = {"from_stream": "S", "from_durable": "d"}
    one_route(**stream, limit={"rate": "5/s", "per": "sequence"})()
    found = problems(one_route(**stream, limit={"rate": "5/s", "per": "deliveries"}))
    assert "another key each time" in found["routes[0].limit.per"]


FILE = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "a"
[routes.from]
subject = "in.*"
[[routes.to]]
subject = "out"
jetstream = true
"""


def test_the_environment_sets_keys_of_limits_and_breakers_whether_or_not_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(FILE)
    variables = {"ROUTES__0__LIMIT__RATE": "7/m", "ROUTES__0__TO__0__BREAKER__FAILURES": "2"}
    settings = Settings.load(path, environ={f"ROUTER_TRIO_{name}": value for name, value in variables.items()})
    [route] = settings.routes
    assert route.limit is not None
    assert route.limit.rate == Rate(7, 60)
    assert route.to[0].breaker is not None
    assert route.to[0].breaker.failures == 2
    found = problems(lambda: Settings.load(path, environ={"ROUTER_TRIO_ROUTES__0__LIMIT__RAET": "7/m"}))
    assert found == {"routes[0].limit.rate": "missing, and has no default"} | {
        key: text for key, text in found.items() if "RAET" in key or "raet" in key
    }
    assert len(found) == 2


def test_the_schema_has_the_pattern_of_a_rate() -> None:
    properties = file_schema()["$defs"]["LimitSettings"]["properties"]
    assert properties["rate"]["pattern"] == "^[1-9][0-9]*/[smh]$"
