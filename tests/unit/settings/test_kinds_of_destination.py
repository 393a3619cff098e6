"""The kind of a destination decides which keys it can have, what it promises and what pages show of it."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.protocol import schedules
from router_trio.settings import DestinationSettings, Settings
from router_trio.settings.checks.warnings import warnings
from router_trio.settings.routes.destinations.core import CORE
from router_trio.settings.routes.destinations.delayed import DELAYED
from router_trio.settings.routes.destinations.jetstream import JETSTREAM
from router_trio.settings.routes.destinations.kind import DestinationKind
from router_trio.settings.routes.source import KINDS
from router_trio.settings.routes.sources.kind import SourceKind
from tests.unit.settings.problems import MAIN, one_route, problems, route

ONLY_STORED: dict[str, Any] = {"stream": "COPIES", "ttl": "1m", "breaker": {}, "delay": "5m"}
"""Keys that only a JetStream publish can have."""


@pytest.mark.parametrize("source", KINDS, ids=lambda kind: kind.key)
@pytest.mark.parametrize("given", [None, True, False])
def test_a_destination_of_a_stream_source_is_stored_by_default(source: SourceKind, given: bool | None) -> None:
    to = DestinationSettings(subject="out", jetstream=given)
    assert to.kind_for(source).waits_for_puback == (source.is_stored if given is None else given)


@pytest.mark.parametrize("kind", [CORE, JETSTREAM], ids=["core", "jetstream"])
def test_programs_are_shown_the_destination_and_whether_a_stream_stores_it(kind: DestinationKind) -> None:
    to = DestinationSettings(subject="out.{{wildcard(1)}}")
    assert kind.template(to) == "out.{{wildcard(1)}}"
    assert kind.shown(to) == {"subject": "out.{{wildcard(1)}}", "jetstream": kind is JETSTREAM}


def test_a_core_publish_has_no_keys_that_only_a_stream_acts_on() -> None:
    found = problems(one_route(to=[{"subject": "out", **ONLY_STORED}]))
    assert found.keys() == {f"routes[0].to[0].{key}" for key in ONLY_STORED}
    assert all(message.endswith("; set jetstream = true, or remove it") for message in found.values())


def test_a_jetstream_publish_has_all_keys_that_a_stream_acts_on() -> None:
    to = {"subject": "out", "jetstream": True, **ONLY_STORED, "schedule_prefix": "later"}
    (route,) = one_route(to=[to])().routes
    assert route.to[0].kind_for(route.source.kind) is DELAYED
    (route,) = one_route(to=[to | {"delay": None}])().routes
    assert route.to[0].kind_for(route.source.kind) is JETSTREAM


def test_a_delayed_destination_is_published_below_its_prefix_and_shown_with_its_delay() -> None:
    to = DestinationSettings(subject="out.{{wildcard(1)}}", jetstream=True, delay="5m", schedule_prefix="later.x")
    assert DELAYED.template(to) == "out.{{wildcard(1)}}"
    assert DELAYED.stored_under(to, "out.*") == "later.x.*"
    assert JETSTREAM.stored_under(to, "out.*") == "out.*"
    shown = {"subject": "out.{{wildcard(1)}}", "jetstream": True, "delay": "5m", "schedule_prefix": "later.x"}
    assert DELAYED.shown(to) == shown


DELAY = {"subject": "out.x", "jetstream": True, "delay": "5m", "schedule_prefix": "later"}


@pytest.mark.parametrize(
    "delay",
    ["5m", "0s", "duration(body.wait)", "timestamp(body.at)", 'headers["x"] == "" ? duration("1s") : duration("2s")'],
)
def test_a_delay_is_a_duration_or_an_expression_for_one_or_for_a_timestamp(delay: str) -> None:
    one_route(to=[DELAY | {"delay": delay}])()


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"delay": "5"}, "delay", "'5' has no unit; write '5s' for seconds or '5ms' for milliseconds"),
        ({"delay": "2d"}, "delay", "'2d' has the unit d, and the longest unit is h; write '48h'"),
        ({"delay": "body.wait"}, "delay", "this is of type dyn, and a delay is a duration or a timestamp"),
        ({"delay": '"5m"'}, "delay", "this is of type string, and a delay is a duration or a timestamp"),
        ({"delay": "time"}, "delay", "there is no variable 'time': only messages from a stream have it"),
        ({"schedule_prefix": None}, "schedule_prefix", "missing; with `delay`, copies are stored below this subject"),
        ({"schedule_prefix": "later.*"}, "schedule_prefix", "'later.*'"),
        ({"schedule_prefix": "$later"}, "schedule_prefix", "begins with '$'"),
        ({"schedule_prefix": "out"}, "schedule_prefix", "'out' is a part of the destination 'out.x'"),
        ({"schedule_prefix": "in"}, "schedule_prefix", "can match the route's own source 'in.*'"),
        ({"headers": {"keep": ["Nats-TTL"]}}, "headers.keep[0]", "'Nats-TTL' would steer how the schedule is stored"),
    ],
)
def test_a_delay_that_can_not_work_is_refused(changes: dict[str, Any], key: str, message: str) -> None:
    ((path, found),) = problems(one_route(to=[DELAY | changes])).items()
    assert path == f"routes[0].to[0].{key}"
    assert message in found


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({}, "stream 'OUT' does not publish messages later; set allow_message_schedules on it"),
        ({"max_age": "1h"}, "set allow_message_schedules on it"),
    ],
)
def test_a_declared_stream_that_would_lose_schedules_is_refused(stream: dict[str, Any], message: str) -> None:
    declared = {"name": "OUT", "subjects": ["later.>", "out.*"], **stream}
    found = problems(lambda: Settings(connections=MAIN, streams=[declared], routes=[route(to=[DELAY])]))
    assert message in found["routes[0].to[0].delay"]
    Settings(connections=MAIN, streams=[declared | {"subjects": ["out.*"]}], routes=[route(to=[DELAY])])


@pytest.mark.parametrize(
    "limits",
    [{"max_age": "1h"}, {"max_bytes": "1MiB"}, {"max_messages": 1}, {"discard": "new"}, {"retention": "interest"}],
)
def test_a_stream_for_schedules_has_no_limits(limits: dict[str, Any]) -> None:
    declared = {"name": "OUT", "subjects": ["later.>"], "allow_message_schedules": True}
    Settings(connections=MAIN, streams=[declared])
    found = problems(lambda: Settings(connections=MAIN, streams=[declared | limits]))
    assert list(found) == ["streams[0].allow_message_schedules"]


RETRY = {"schedule": {"stream": "RETRY", "prefix": "retry"}}
STREAM = {"stream": "IN", "durable": "router", "filter": "in.*"}


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"from": {"subject": "in.*"}}, "", "only messages from a stream can wait in another one"),
        ({"from": STREAM | {"stream": "RETRY"}}, ".stream", "is the stream that the route reads"),
        ({"retry": {"schedule": {"stream": "R.Y", "prefix": "retry"}}}, ".stream", "contains '.'"),
        ({"retry": {"schedule": {"stream": "RETRY", "prefix": "$retry"}}}, ".prefix", "begins with '$'"),
        ({"retry": {"schedule": {"stream": "RETRY", "prefix": "retry.>"}}}, ".prefix", "retry.>"),
    ],
)
def test_a_schedule_of_retries_that_can_not_work_is_refused(changes: dict[str, Any], key: str, message: str) -> None:
    one = {"name": "r", "from": STREAM, "retry": RETRY, "to": [{"subject": "out"}]} | changes
    ((path, found),) = problems(lambda: Settings(connections=MAIN, routes=[one])).items()
    assert path == f"routes[0].retry.schedule{key}"
    assert message in found


@pytest.mark.parametrize("name", ["orders", "orders 7", "orders.7"])
def test_each_route_has_subjects_and_a_durable_of_its_own_for_retries(name: str) -> None:
    one = {"name": name, "from": STREAM, "retry": RETRY, "to": [{"subject": "out"}]}
    (route,) = Settings(connections=MAIN, routes=[one]).routes
    assert route.retry is not None
    assert route.retry.schedule is not None
    names = route.retry.schedule.names(name)
    *_, token = names.target.split(".")
    assert (token == "orders") == (name == "orders")
    assert names[:4] == (f"retry.s.{token}", f"retry.d.{token}", f"retry-{token}", f"retry.x.{token}")
    assert names.other_durable == f"retry-{token}-{schedules.token(b'retry')}"


def test_check_warns_that_the_order_of_a_key_ends_where_messages_are_delayed() -> None:
    one = {"name": "r", "from": STREAM, "retry": RETRY, "key": "body.id", "to": [DELAY], "handler": "a:b"}
    settings = Settings(connections=MAIN, routes=[one])
    found = {one.path: one.message for one in warnings(settings.connections, settings.routes)}
    assert "the order of `key` ends here" in found["routes[0].to[0].delay"]
    assert "the order of `key` ends with its failure" in found["routes[0].retry.schedule"]
