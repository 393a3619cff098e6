"""`[routes.retry]` and `[routes.dead_letter]`: their keys, and which values are refused."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from router_trio.settings.checks.warnings import warnings

STREAM: dict[str, Any] = {"connection": "main", "stream": "S", "durable": "d", "filter": "in.*"}
CONNECTIONS: dict[str, Any] = {name: {"servers": ["nats://127.0.0.1:4222"]} for name in ("main", "edge")}


def made(source: dict[str, Any] = STREAM, **route: Any) -> Settings:
    """Return settings of one route."""
    whole = {"name": "r", "from": source, "to": [{"connection": "main", "subject": "out.x"}], **route}
    return Settings(connections=CONNECTIONS, routes=[whole])


def problems(**route: Any) -> dict[str, str]:
    """Return the problems for which the route is refused, by key path."""
    with pytest.raises(ConfigurationError) as caught:
        made(**route)
    return {one.path.removeprefix("routes[0]."): one.message for one in caught.value.problems}


def test_a_route_has_no_retry_and_no_dead_letter_by_default() -> None:
    route = made().routes[0]
    assert (route.retry, route.dead_letter) == (None, None)


def test_retry_has_its_defaults() -> None:
    retry = made(retry={}).routes[0].retry
    assert retry is not None
    assert (retry.initial, retry.factor, retry.max, retry.attempts, retry.never) == (1.0, 2.0, 60.0, 0, [])


def test_dead_letters_go_to_a_stream_on_the_connection_of_the_source() -> None:
    letter = made(dead_letter={"subject": "dead.{{wildcard(1)}}"}).routes[0].dead_letter
    assert letter is not None
    assert (letter.connection, letter.jetstream) == ("main", True)
    letter = made(dead_letter={"subject": "dead.x", "connection": "edge", "jetstream": False}).routes[0].dead_letter
    assert letter is not None
    assert (letter.connection, letter.jetstream) == ("edge", False)


@pytest.mark.parametrize(
    ("retry", "found"),
    [
        ({"initial": "1ms"}, {".initial": "1ms is too short; at least 10ms"}),
        ({"factor": 0.5}, {".factor": "must be at least 1"}),
        ({"factor": 101}, {".factor": "must be at most 100"}),
        ({"attempts": -1}, {".attempts": "must be at least 0"}),
        ({"initial": "2s", "max": "1s"}, {".max": "1s is less than initial, 2s; raise one of them"}),
        ({"not": ["handler-error"]}, {".not[0]": "'handler-error' is not a reason"}),
        ({"not": ["mapping", "handler_error:"]}, {".not[1]": "'handler_error:' is not a reason"}),
        ({"not": ["mapping:x"]}, {".not[0]": "'mapping:x' is not a reason"}),
        ({"not": ["handler_eror"]}, {".not[0]": "no message fails with the reason 'handler_eror'; did you mean"}),
        ({"not": ["no_stream"]}, {".not[0]": "no message fails with the reason 'no_stream'; did you mean 'no_resp"}),
        ({"not": ["stream_full"]}, {".not[0]": "no message fails with the reason 'stream_full'; did you mean 'limit'"}),
        ({"not": 5}, {".not": "must be a list in brackets"}),
        ({"tries": 5}, {".tries": "unknown key"}),
    ],
)
def test_bad_values_of_a_retry_are_refused(retry: dict[str, Any], found: dict[str, str]) -> None:
    actual = problems(retry=retry)
    assert {path.removeprefix("retry"): message for path, message in actual.items()}.keys() == found.keys()
    for key, message in found.items():
        assert actual[f"retry{key}"].startswith(message), actual


def test_reasons_that_are_not_known_beforehand_are_accepted() -> None:
    reasons = ["jetstream_10054", "handler_error:ValueError", "handler_error:Outer.Inner", "brand_new"]
    retry = made(retry={"not": reasons}).routes[0].retry
    assert retry is not None
    assert retry.never == reasons


@pytest.mark.parametrize(
    ("letter", "found"),
    [
        ({}, {".subject": "missing"}),
        ({"subject": "dead.{{wildcard(2)}}"}, {".subject": ""}),
        ({"subject": "dead..x"}, {".subject": ""}),
        ({"subject": "in.{{wildcard(1)}}"}, {".subject": "'in.{{wildcard(1)}}' can match the route's own source"}),
        ({"subject": "dead.x", "connection": "other"}, {".connection": "there is no connection 'other'"}),
        ({"subject": "dead.x", "when": "true"}, {".when": "unknown key"}),
        ({"subject": "dead.x", "stream": "a.b"}, {".stream": "'a.b' contains '.', which NATS does not allow"}),
        (
            {"subject": "dead.x", "stream": "S", "jetstream": False},
            {".stream": "only a JetStream publish has a PubAck"},
        ),
    ],
)
def test_bad_values_of_a_dead_letter_are_refused(letter: dict[str, Any], found: dict[str, str]) -> None:
    actual = problems(dead_letter=letter)
    assert {path.removeprefix("dead_letter") for path in actual} == found.keys()
    for key, message in found.items():
        assert actual[f"dead_letter{key}"].startswith(message), actual


def test_a_bad_retry_hides_no_other_mistake_of_the_route() -> None:
    found = problems(retry={"not": ["?"]}, dead_letter={"subject": "dead..x"}, to=[{"subject": 5}])
    assert {"retry.not[0]", "dead_letter.subject", "to[0].subject"} <= found.keys()


def test_keys_without_effect_are_warned_about() -> None:
    settings = made(STREAM | {"max_deliver": 5, "nak_delay": "2s"})
    warned = {one.path: one.message for one in warnings(settings.connections, settings.routes)}
    assert warned.keys() == {"routes[0].from.max_deliver", "routes[0].from.nak_delay"}
    assert "write attempts in [routes.retry] instead" in warned["routes[0].from.max_deliver"]
    assert "write initial in [routes.retry] instead" in warned["routes[0].from.nak_delay"]


DEAD = {"subject": "dead.x"}


@pytest.mark.parametrize("retry", [None, {}, {"attempts": 0, "max": "5s"}])
def test_dead_letters_without_attempts_are_warned_of(retry: dict[str, Any] | None) -> None:
    config = made(dead_letter=DEAD, **({} if retry is None else {"retry": retry}))
    [warning] = [one for one in warnings(config.connections, config.routes) if one.path == "routes[0].dead_letter"]
    assert "is never used" in warning.message
    assert "set `attempts`" in warning.message


def test_dead_letters_of_a_handler_without_attempts_are_of_what_it_rejects() -> None:
    config = made(dead_letter=DEAD, handler="os:getpid")
    [warning] = [one for one in warnings(config.connections, config.routes) if one.path == "routes[0].dead_letter"]
    assert "only for messages that the handler rejects" in warning.message


@pytest.mark.parametrize(
    "route",
    [
        {"retry": {"attempts": 5}},
        {"retry": {"not": ["mapping"]}},
        {"source": {"connection": "main", "subject": "in.*"}},
    ],
)
def test_dead_letters_that_are_used_are_not_warned_of(route: dict[str, Any]) -> None:
    config = made(dead_letter=DEAD, **route)
    assert [one for one in warnings(config.connections, config.routes) if one.path == "routes[0].dead_letter"] == []
