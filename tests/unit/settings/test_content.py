"""Expressions, strategies and transforms of routes: what is accepted, and what can't work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from router_trio.settings.checks.content import MAX_WEIGHTS
from router_trio.settings.expressions import compile_for
from router_trio.settings.routes import MAX_WEIGHT
from tests.unit.settings.problems import MAIN, Load, one_route, problems

STREAM: dict[str, Any] = {"from_stream": "S", "from_durable": "d", "from_filter": "in.*"}

DOCUMENTED = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "orders"
when = 'headers["region"] == "eu" && body.total > 100'
key = 'body.customer.id'
strategy = "first_match"
[routes.from]
stream = "ORDERS"
durable = "router"
filter = "orders.*"
[[routes.to]]
when = 'body.priority == "high"'
subject = "fast.{{wildcard(1)}}"
jetstream = true
payload = '{"id": body.id, "total": double(body.total) * 100.0}'
ttl = "1h"
[routes.to.headers]
set = { "X-Region" = 'body.region', "X-Router" = '"trio"' }
remove = ["X-Internal"]
keep = ["Nats-TTL"]
[[routes.to]]
subject = "slow.{{wildcard(1)}}"
jetstream = true
[[routes.to]]
subject = "copy.{{wildcard(1)}}"
mirror = 0.1
[[tests]]
name = "a large European order goes fast"
[tests.message]
subject = "orders.7"
headers = { region = "eu" }
json = { id = "7", total = 150.0, priority = "high" }
[[tests.expect]]
subject = "fast.7"
json = { id = "7", total = 15000.0 }
"""


def to(*destinations: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"subject": f"out.{index}", **one} for index, one in enumerate(destinations)]


def test_documented_keys_are_accepted(load: Load) -> None:
    settings = load(DOCUMENTED)
    [route] = settings.routes
    assert (route.strategy, route.key) == ("first_match", "body.customer.id")
    fast, slow, copy = route.to
    assert (fast.ttl, slow.ttl, copy.mirror, slow.mirror, slow.weight) == (3600.0, 0.0, 0.1, None, 1)
    assert fast.headers.set == {"X-Region": "body.region", "X-Router": '"trio"'}
    [example] = settings.tests
    assert example.message.body == {"id": "7", "total": 150.0, "priority": "high"}
    [expected] = example.expect
    assert (expected.subject, expected.connection, expected.headers, expected.payload) == ("fast.7", None, None, None)


def test_the_default_strategy_is_all_without_decisions_by_content() -> None:
    [route] = one_route()().routes
    assert (route.strategy, route.when, route.key) == ("all", None, None)
    [only] = route.to
    assert (only.when, only.payload, only.ttl, only.mirror) == (None, None, 0.0, None)


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"strategy": "frist_match"}, "strategy", "must be 'all', 'first_match', 'weighted', 'sticky' or 'fallback'"),
        ({"strategy": "sticky"}, "key", "missing; strategy 'sticky' needs an expression"),
        ({"when": ""}, "when", "must not be empty"),
        (
            {"to": to({"weight": 3}, {})},
            "to[0].weight",
            "strategy 'all' does not use weights; remove it, or set strategy",
        ),
        (
            {"strategy": "first_match", "to": to({"when": "true", "weight": 2}, {})},
            "to[0].weight",
            "strategy 'first_match' does not use weights",
        ),
        ({"strategy": "weighted", "to": to({"weight": 0}, {})}, "to[0].weight", "must be at least 1"),
        ({"strategy": "weighted", "to": to({"weight": 1.5}, {})}, "to[0].weight", "must be a whole number"),
        ({"strategy": "weighted", "to": to({"weight": MAX_WEIGHT + 1}, {})}, "to[0].weight", "must be at most 1000"),
        (
            {"strategy": "weighted", "to": to(*[{"weight": MAX_WEIGHT}] * 11)},
            "to",
            f"the weights add up to {11 * MAX_WEIGHT}, and at most to {MAX_WEIGHTS}",
        ),
        ({"to": to({}, {"mirror": 0})}, "to[1].mirror", "must be greater than 0"),
        ({"to": to({}, {"mirror": -0.5})}, "to[1].mirror", "must be greater than 0"),
        ({"to": to({}, {"mirror": 1.01})}, "to[1].mirror", "must be at most 1"),
        ({"to": to({}, {"mirror": float("nan")})}, "to[1].mirror", "must be"),
        ({"to": to({"mirror": 0.5})}, "to", "has only mirrors, and each message has to go somewhere"),
        ({"to": to({}, {"mirror": 0.5, "when": "true"})}, "to[1].when", "can't be combined with mirror"),
        (
            {"strategy": "weighted", "to": to({}, {"mirror": 0.5, "weight": 2})},
            "to[1].weight",
            "can't be combined with mirror",
        ),
        (
            {"strategy": "weighted", "to": to({"when": "true"}, {})},
            "to[0].when",
            "strategy 'weighted' does not use it; remove it, or set when for the whole route",
        ),
        ({"strategy": "sticky", "key": "subject", "to": to({"when": "true"}, {})}, "to[0].when", "strategy 'sticky'"),
        ({"strategy": "fallback", "to": to({"when": "true"}, {})}, "to[0].when", "strategy 'fallback' does not use"),
        (
            {"strategy": "first_match", "to": to({"when": "true"}, {}, {"when": "true"})},
            "to[1].when",
            "missing; without it every message goes here, and none to to[2] and later; move it to the end",
        ),
        ({"strategy": "fallback", "to": to({})}, "to", "strategy 'fallback' has nothing to fall back to"),
        ({"strategy": "fallback", "to": to({}, {"mirror": 0.1})}, "to", "strategy 'fallback' has nothing to fall back"),
        ({"to": to({"ttl": "1h"})}, "to[0].ttl", "only a stream deletes messages; set jetstream = true"),
        ({"to": to({"stream": "S"})}, "to[0].stream", "only a JetStream publish has a PubAck; set jetstream = true"),
        ({"to": to({"ttl": "500ms", "jetstream": True})}, "to[0].ttl", "500ms is too short; at least 1s, or 0s"),
        ({"to": to({"ttl": "1.5s", "jetstream": True})}, "to[0].ttl", "a stream counts in whole seconds"),
    ],
)
def test_impossible_combinations_are_refused(changes: dict[str, Any], path: str, message: str) -> None:
    found = problems(one_route(**changes))
    assert set(found) == {f"routes[0].{path}"}
    assert found[f"routes[0].{path}"].startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "first_match", "to": to({"when": "true"}, {"mirror": 1}, {})},
        {"strategy": "weighted", "to": to({"weight": 3}, {}, {"mirror": 0.1})},
        {"strategy": "sticky", "key": "tokens[0]", "to": to({"weight": 3}, {})},
        {"strategy": "fallback", "to": to({}, {})},
        {"key": "body.customer", "to": to({"ttl": "0s"})},
        {"to": to({"ttl": "90s", "jetstream": True})},
    ],
)
def test_possible_combinations_are_accepted(changes: dict[str, Any]) -> None:
    one_route(**changes)()


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"when": 'heders["a"] == "b"'}, "when", "there is no variable 'heders': did you mean 'headers'?"),
        ({"when": "subject"}, "when", "this is of type string, but bool is expected"),
        ({"when": "body.total > "}, "when", ""),
        ({"when": 'subject.matches("[")'}, "when", "RE2 can't read the pattern"),
        ({"key": "subject +"}, "key", ""),
        ({"key": '"eu"'}, "key", "this is the same for every message; take something of the message"),
        ({"key": "tokens"}, "key", "this is of type list(string), which can't be a key"),
        ({"to": to({"when": "1"})}, "to[0].when", "this is of type int, but bool is expected"),
        ({"to": to({"payload": "{'a': type(body)}"})}, "to[0].payload", "this is of type map(string, type"),
        ({"to": to({"headers": {"set": {"X-A": "tokens"}}})}, "to[0].headers.set.X-A", "this is of type list(string)"),
        ({"to": to({"headers": {"set": {"X-A": "absent"}}})}, "to[0].headers.set.X-A", "there is no variable 'absent'"),
    ],
)
def test_wrong_expressions_are_refused(changes: dict[str, Any], path: str, message: str) -> None:
    found = problems(one_route(**changes))
    assert set(found) == {f"routes[0].{path}"}
    assert found[f"routes[0].{path}"].startswith(message)


@pytest.mark.parametrize("name", ["stream", "sequence", "deliveries", "time"])
def test_only_a_stream_has_the_variables_of_a_stream(name: str) -> None:
    text = f"string({name}) != 'x'"
    found = problems(one_route(when=text))
    message = f"there is no variable {name!r}: only messages from a stream have it, and this source is a subject"
    assert found == {"routes[0].when": message}
    assert one_route(**STREAM, when=text)().routes[0].when == text


def test_a_mistake_beside_a_variable_of_a_stream_is_reported_itself() -> None:
    found = problems(one_route(when="[1].all(sequence, sequence)"))
    assert "only messages from a stream" not in found["routes[0].when"]


def test_the_number_of_deliveries_can_not_be_a_key() -> None:
    found = problems(one_route(**STREAM, key="subject + string(deliveries)"))
    assert found["routes[0].key"].startswith("a message would have another key each time it is delivered")


@pytest.mark.parametrize(
    ("headers", "path", "message"),
    [
        ({"set": {"X A": "subject"}}, "set.X A", "header name 'X A' is not valid"),
        ({"remove": ["X:"]}, "remove[0]", "header name 'X:' is not valid"),
        ({"set": {"Nats-TTL": '"1h"'}}, "set.Nats-TTL", "'Nats-TTL' is a control header, which steers the stream"),
        ({"remove": ["nats-rollup"]}, "remove[0]", "'nats-rollup' is a control header, which is never copied"),
        ({"set": {"nats-msg-id": "subject"}}, "set.nats-msg-id", "nats-msg-id is set by the router"),
        ({"set": {"X-A": "subject"}, "remove": ["x-a"]}, "remove[0]", "'x-a' is in set.X-A already; keep one"),
        ({"remove": ["A", "a"]}, "remove[1]", "'a' is in remove[0] already"),
        ({"set": {"X-A": ""}}, "set.X-A", "must not be empty"),
        ({"set": ["X-A"]}, "set", "must be a table of keys and values"),
    ],
)
def test_wrong_headers_are_refused(headers: dict[str, Any], path: str, message: str) -> None:
    found = problems(one_route(to=to({"headers": headers})))
    assert set(found) == {f"routes[0].to[0].headers.{path}"}
    assert found[f"routes[0].to[0].headers.{path}"].startswith(message)


def test_matches_without_its_library_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    compile_for.cache_clear()
    found = problems(one_route(when='subject.matches("^in")'))
    assert found == {"routes[0].when": "matches() needs RE2: pip install google-re2"}


def test_each_problem_is_one_line_followed_by_the_marked_expression(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(
            DOCUMENTED.replace("body.total > 100'", "bdy.total > 100'").replace("'body.customer.id'", '"""a +\n  1"""')
        )
    file = tmp_path / "router.toml"
    assert str(caught.value).splitlines() == [
        f"{file}: routes[0].when: there is no variable 'bdy': did you mean 'body'? (line 6, route 'orders')",
        '  headers["region"] == "eu" && bdy.total > 100',
        "                               ^^^",
        f"{file}: routes[0].key: there is no variable 'a': quote it if it is text; the variables are subject, tokens, "
        "headers, body, payload, size, stream, sequence, deliveries, time, at line 1, column 1 of the expression "
        "(line 7, route 'orders')",
        "  a +",
        "  ^",
    ]


def test_a_broken_section_does_not_hide_wrong_expressions() -> None:
    found = problems(
        lambda: Settings(
            connections=MAIN,
            router={"nam": "x"},
            routes=[{"name": "r", "from": {"subject": "a"}, "when": "x", "strategy": "none", "to": to({"weight": 2})}],
        )
    )
    assert set(found) == {"router.nam", "routes[0].when", "routes[0].strategy"}


# --- examples ---


def example(**changes: Any) -> dict[str, Any]:
    return {"name": "e", "message": {"subject": "in.1"}, "expect": [{"subject": "out"}], **changes}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"name": ""}, "name", "must not be empty"),
        ({"nam": "x"}, "nam", "unknown key; did you mean 'name'?"),
        ({"message": {"subject": "in..x"}}, "message.subject", "subject 'in..x'"),
        ({"message": {"subject": "in.*"}}, "message.subject", "subject 'in.*'"),
        ({"message": {"subject": "a", "json": 1, "payload": "1"}}, "message", "json and payload exclude each other"),
        ({"message": {"subject": "a", "headers": {"a b": "c"}}}, "message.headers", "header name 'a b' is not valid"),
        ({"message": {"subject": "a", "json": float("inf")}}, "message.json", "must be what JSON can hold"),
        ({"message": {"subject": "a", "connection": "mian"}}, "message.connection", "there is no connection 'mian'"),
        ({"expect": [{"subject": "a", "payload": 5}]}, "expect[0].payload", "must be text in quotes"),
        ({"expect": [{"subject": "a", "connection": "mian"}]}, "expect[0].connection", "there is no connection 'mian'"),
        ({"expect": {}}, "expect", "must be a list"),
    ],
)
def test_wrong_examples_are_refused(changes: dict[str, Any], path: str, message: str) -> None:
    found = problems(lambda: Settings(connections=MAIN, tests=[example(**changes)]))
    assert set(found) == {f"tests[0].{path}"}
    assert found[f"tests[0].{path}"].startswith(message)


def test_a_toml_date_is_refused_as_json(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"tests\[0\].message.json: must be what JSON can hold"):
        load(DOCUMENTED.replace("total = 150.0", "total = 2020-01-01"))


def test_names_of_examples_are_unique() -> None:
    found = problems(lambda: Settings(connections=MAIN, tests=[example(), example()]))
    assert found == {"tests[1].name": "'e' is the name of tests[0] already; choose another"}


def test_an_example_must_have_an_expectation() -> None:
    found = problems(lambda: Settings(connections=MAIN, tests=[{"name": "e", "message": {"subject": "a"}}]))
    assert found == {"tests[0].expect": "missing, and has no default"}
    assert Settings(connections=MAIN, tests=[example(expect=[])]).tests[0].expect == []


def test_settings_with_content_survive_a_dump(load: Load) -> None:
    settings = load(DOCUMENTED)
    assert Settings(**settings.model_dump(by_alias=True)).routes == settings.routes
