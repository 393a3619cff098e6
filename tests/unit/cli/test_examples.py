"""Runs by `router-trio test` of the examples of a configuration, on fake brokers, and what they print."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from router_trio.cli.test.example_run import Result, run_examples
from router_trio.settings import Settings

MAIN = {"main": {"servers": ["nats://h"]}}
BOTH = {**MAIN, "edge": {"servers": ["nats://h"]}}

HANDLERS = """
import trio

def double(message):
    return message.replace(payload=message.payload * 2)

def refuse(message):
    raise ValueError("no such order")

def swallow(message):
    return None

async def slow(message):
    await trio.sleep(60)
    return message

async def stuck(message):
    await trio.sleep_forever()
"""


def core(subject: str, *to: str | dict[str, Any], name: str = "r", **rest: Any) -> dict[str, Any]:
    destinations = [{"subject": one} if isinstance(one, str) else one for one in to]
    return {"name": name, "from": {"subject": subject, "connection": "main"}, "to": _on_main(destinations), **rest}


def stream(
    name: str, *to: str | dict[str, Any], route: str = "r", filter: str | None = None, **rest: Any
) -> dict[str, Any]:
    destinations = [{"subject": one, "jetstream": True} if isinstance(one, str) else one for one in to]
    source = {"stream": name, "durable": route, "connection": "main", **({"filter": filter} if filter else {})}
    return {"name": route, "from": source, "to": _on_main(destinations), **rest}


def _on_main(destinations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"connection": "main", **one} for one in destinations]


def example(message: dict[str, Any] | str, *expect: dict[str, Any] | str, name: str = "e") -> dict[str, Any]:
    def whole(one: dict[str, Any] | str) -> dict[str, Any]:
        return {"subject": one} if isinstance(one, str) else one

    return {"name": name, "message": whole(message), "expect": [whole(one) for one in expect]}


def results(*routes: dict[str, Any], tests: list[dict[str, Any]], **sections: Any) -> list[Result]:
    settings = Settings(**{"connections": MAIN, **sections}, routes=list(routes), tests=tests)
    return list(run_examples(settings, settings.tests))


def run(*routes: dict[str, Any], test: dict[str, Any], **sections: Any) -> Result:
    [one] = results(*routes, tests=[test], **sections)
    return one


@pytest.fixture
def handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with handlers."""
    (tmp_path / "handlers_of_examples.py").write_text(HANDLERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("handlers_of_examples", None)
    return "handlers_of_examples"


# --- messages enter where routes read, and what leaves is compared ---


@pytest.mark.parametrize(
    "route",
    [
        core("in.*", "out.{{wildcard(1)}}"),
        core("in.*", {"subject": "out.{{wildcard(1)}}", "jetstream": True}),
        stream("IN", "out.{{wildcard(1)}}", filter="in.*"),
        stream("IN", "out.7"),
    ],
)
def test_a_message_is_routed(route: dict[str, Any]) -> None:
    found = run(route, test=example({"subject": "in.7", "payload": "x"}, {"subject": "out.7", "payload": "x"}))
    assert found.difference == ()
    assert [(one.connection, one.subject, one.payload) for one in found.sent] == [("main", "out.7", b"x")]
    assert found.passed


def test_a_message_passes_through_several_routes() -> None:
    routes = [
        stream("IN", "mid.{{wildcard(1)}}", filter="in.*"),
        stream("MID", {"subject": "out.{{wildcard(1)}}", "connection": "edge"}, route="second", filter="mid.*"),
    ]
    found = run(*routes, test=example("in.1", {"subject": "out.1", "connection": "edge"}, "mid.1"), connections=BOTH)
    assert found.difference == ()


def test_every_matching_route_receives_the_message() -> None:
    routes = [core("in.*", "a"), stream("IN", "b", route="s"), core("in.7", "c", name="t"), core("x", "d", name="u")]
    assert run(*routes, test=example("in.7", "c", "b", "a")).difference == ()


def test_a_stream_may_be_read_with_any_consumer_options() -> None:
    routes = [
        stream("ALL", "all", route="a"),
        stream("IN", "first", route="b", filter="in.*"),
        stream("IN", "second", route="c"),
        stream("OTHER", "third.>", route="d", filter="in.>"),
    ]
    # A subject belongs to the first stream that is known to take it.
    assert run(*routes, test=example("in.7", "first", "second")).difference == ()
    assert run(*routes, test=example("in.7.8", "third.7.8")).difference == ()
    assert run(*routes, test=example("else", "all")).difference == ()


def test_a_message_arrives_on_the_connection_that_the_test_names() -> None:
    routes = [core("in.*", "out.main"), {**core("in.*", "out.edge", name="s"), "from": {"subject": "in.*"}}]
    routes[1]["from"]["connection"] = "edge"
    for given, expected in ((None, "out.main"), ("main", "out.main"), ("edge", "out.edge")):
        message = {"subject": "in.7"} if given is None else {"subject": "in.7", "connection": given}
        assert run(*routes, test=example(message, expected), connections=BOTH).difference == ()


def test_each_test_has_a_router_and_brokers_of_its_own() -> None:
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*")
    found = results(route, tests=[example("in.1", "out.1"), example("in.2", "out.2", name="f")])
    assert [one.passed for one in found] == [True, True]


def test_handlers_are_called(handlers: str) -> None:
    route = core("in", "out", handler=f"{handlers}:double")
    assert run(route, test=example({"subject": "in", "payload": "x"}, {"subject": "out", "payload": "xx"})).passed
    assert run(core("in", "out", handler=f"{handlers}:swallow"), test=example("in")).passed


def test_a_handler_that_sleeps_for_a_minute_takes_no_real_time(handlers: str) -> None:
    began = time.monotonic()
    assert run(stream("IN", "out", handler=f"{handlers}:slow"), test=example("in", "out")).passed
    assert time.monotonic() - began < 30


def test_nothing_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("it connects")

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refused)
    telemetry = {"listen": "127.0.0.1:9001", "otlp_endpoint": "http://127.0.0.1:9", "trace_sample_ratio": 1.0}
    found = run(core("in", "out"), test=example("in", "out"), telemetry=telemetry)
    assert found.passed
    assert [name for name, _ in found.sent[0].headers.pairs()] == []


# --- differences are shown ---


def test_json_is_compared_as_json_and_the_rest_in_any_order() -> None:
    route = core("in", "out")
    message = {"subject": "in", "json": {"a": 1, "b": [True, {"c": "é"}]}}
    for same in ({"b": [True, {"c": "é"}], "a": 1}, {"a": 1.0, "b": [True, {"c": "é"}]}):
        assert run(route, test=example(message, {"subject": "out", "json": same})).passed
    others: list[Any] = [{"a": 1, "b": [1, {"c": "é"}]}, {"a": 1}, {"a": 1, "b": [True]}, [], "a"]
    for other in others:
        assert not run(route, test=example(message, {"subject": "out", "json": other})).passed


def test_headers_must_be_there_and_others_may() -> None:
    message = {"subject": "in", "headers": {"A": "1", "B": "2"}}
    assert run(core("in", "out"), test=example(message, {"subject": "out", "headers": {"B": "2"}})).passed
    found = run(core("in", "out"), test=example(message, {"subject": "out", "headers": {"B": "3", "C": "4"}}))
    assert found.difference == ("  subject: out", "- header B: 3", "+ header B: 2", "- header C: 4")


def test_an_expected_message_is_compared_with_the_closest_one_sent() -> None:
    message = {"subject": "in", "json": {"id": "7", "total": 150}}
    wanted = {"subject": "out", "json": {"id": "7", "total": 100}}
    found = run(core("in", "else", "out"), test=example(message, wanted, {"subject": "else"}))
    assert found.difference == (
        "  subject: out",
        "  json: {",
        '    "id": "7",',
        '-   "total": 100',
        '+   "total": 150',
        "  }",
    )


def test_a_message_that_matches_two_expectations_may_satisfy_either() -> None:
    message = {"subject": "in", "payload": "x"}
    routes = [core("in", "out"), core("in", {"subject": "out", "connection": "edge"}, name="s")]
    loose, strict = {"subject": "out"}, {"subject": "out", "connection": "main"}
    for expect in ((loose, strict), (strict, loose)):
        assert run(*routes, test=example(message, *expect), connections=BOTH).passed
    found = run(*routes, test=example(message, strict, strict), connections=BOTH)
    assert found.difference == ("- connection: main", "+ connection: edge", "  subject: out")


def test_an_unexpected_message_is_shown_completely() -> None:
    found = run(core("in", "out"), test=example({"subject": "in", "payload": "a\nb", "headers": {"K": "v"}}))
    assert found.difference == ("+ connection: main", "+ subject: out", "+ header K: v", "+ payload: a", "+ b")


def test_a_missing_message_is_shown(handlers: str) -> None:
    route = core("in", "out", handler=f"{handlers}:swallow")
    found = run(route, test=example("in", {"subject": "out", "payload": "x"}))
    assert found.difference == ("- subject: out", "- payload: x")


def test_a_message_that_no_route_takes() -> None:
    found = run(core("in.*", "out"), core("a", "b", name="s"), test=example("into.7", "out"))
    assert found.difference == ("no route takes 'into.7'; the routes take: a, in.*", "", "- subject: out")
    assert run(core("in.*", "out"), test=example("into.7")).passed
    message = {"subject": "in.7", "connection": "edge"}
    found = run(core("in.*", "out"), test=example(message, "out"), connections=BOTH)
    assert found.difference[0] == "no route takes 'in.7' on connection 'edge'; the routes take: in.*"


@pytest.mark.parametrize("make", [core, stream])
def test_the_reason_of_a_failed_message_is_shown(make: Any, handlers: str) -> None:
    route = make("in", "out", handler=f"{handlers}:refuse")
    why = "route r: the message failed: handler_error: ValueError: no such order"
    found = run(route, test=example("in", "out"))
    assert found.difference == (why, "", "- subject: out")
    found = run(route, test=example("in"))
    assert (found.passed, found.failures) == (True, (why,))


def test_a_message_that_is_never_settled_fails(handlers: str) -> None:
    found = run(stream("IN", "out", handler=f"{handlers}:stuck"), test=example("in"))
    assert not found.passed
    assert found.difference[0].startswith("route r: the message was not settled within 600 s: ")


# --- routing by content ---


def test_when_decides() -> None:
    route = core("in", "out", when='headers["region"] == "eu"')
    assert run(route, test=example({"subject": "in", "headers": {"region": "us"}})).passed


def test_the_first_match_is_taken() -> None:
    to = [{"subject": "fast", "when": 'body.priority == "high"'}, {"subject": "slow"}]
    route = core("in", *to, strategy="first_match")
    high, low = {"subject": "in", "json": {"priority": "high"}}, {"subject": "in", "json": {"priority": "low"}}
    assert run(route, test=example(high, "fast")).passed
    assert run(route, test=example(low, "slow")).passed


def test_a_payload_may_be_built_by_an_expression() -> None:
    route = core("in", {"subject": "out", "payload": '{"id": body.id, "total": body.total * 100.0}'})
    message = {"subject": "in", "json": {"id": "7", "total": 150.5, "more": 1}}
    assert run(route, test=example(message, {"subject": "out", "json": {"id": "7", "total": 15050}})).passed


def test_the_cause_of_a_failed_expression_is_shown() -> None:
    found = run(core("in", "out", when="body.total > 1"), test=example({"subject": "in", "payload": "x"}, "out"))
    assert found.difference[0].startswith("route r: the message failed: expression: ")
