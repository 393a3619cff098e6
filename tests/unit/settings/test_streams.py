"""`[[streams]]`: which streams are accepted, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.protocol.stream_config import StreamConfig
from router_trio.settings import Settings, patterns
from router_trio.settings.checks import streams as checks_of_streams
from router_trio.settings.checks import warnings
from router_trio.subjects.patterns import overlaps
from tests.unit.settings.problems import MAIN, Load, problems

TWO = {**MAIN, "edge": {"servers": ["nats://127.0.0.1:4223"]}}
DEAD = {"name": "DEAD", "subjects": ["dead.>"]}


def test_a_stream_is_configured_as_its_section_describes(load: Load) -> None:
    settings = load("""
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[streams]]
name = "DEAD"
subjects = ["dead.>", "lost.*"]
storage = "memory"
retention = "workqueue"
replicas = 3
max_age = "1h"
max_bytes = "64MiB"
max_messages = 1000
discard = "new"
duplicate_window = "10m"
allow_batched = true
allow_message_ttl = true
[[streams]]
name = "PLAIN"
subjects = ["plain"]
""")
    dead, plain = settings.streams
    assert (dead.connection, plain.connection) == ("main", "main"), "the only connection"
    assert dead.config == StreamConfig(
        "DEAD", ("dead.>", "lost.*"), "memory", "workqueue", 3, 3600.0, 64 * 1024**2, 1000, "new", 600.0, True, True
    )
    assert plain.config == StreamConfig("PLAIN", ("plain",))


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"name": "a.b"}, "name", "contains '.', which NATS does not allow"),
        ({"subjects": []}, "subjects", "must have at least 1 entry"),
        ({"subjects": ["a", "dead.>.x"]}, "subjects[1]", "has '>' before its last token"),
        ({"subjects": ["dead.*", "x", "dead.a"]}, "subjects[2]", "overlaps with subjects[0], 'dead.*'"),
        ({"subjects": [">"]}, "subjects[0]", "takes in requests to JetStream"),
        ({"storage": "disk"}, "storage", "must be 'file' or 'memory'"),
        ({"retention": "none"}, "retention", "must be 'limits', 'interest' or 'workqueue'"),
        ({"replicas": 6}, "replicas", "must be at most 5"),
        ({"max_age": "1ms"}, "max_age", "is too short; at least 100ms, or 0s"),
        ({"max_age": "1m", "duplicate_window": "2m"}, "duplicate_window", "2m is longer than max_age, 1m"),
        ({"max_messages": -1}, "max_messages", "must be at least 0"),
        ({"max_msgs": 5}, "max_msgs", "did you mean 'max_messages'?"),
        ({"connection": "edge"}, "connection", "there is no connection 'edge'"),
    ],
)
def test_impossible_streams_are_refused(changes: dict[str, Any], path: str, message: str) -> None:
    found = problems(lambda: Settings(connections=MAIN, streams=[DEAD | changes]))
    assert list(found) == [f"streams[0].{path}"]
    assert message in found[f"streams[0].{path}"]


def test_a_stream_must_name_one_of_several_connections() -> None:
    found = problems(lambda: Settings(connections=TWO, streams=[DEAD]))
    assert found == {
        "streams[0].connection": "missing; there are several connections, name one of 'main', 'edge'",
    }


def test_two_streams_of_one_connection_have_two_names() -> None:
    again = {"name": "DEAD", "subjects": ["other"]}
    found = problems(lambda: Settings(connections=MAIN, streams=[DEAD, again]))
    assert "'DEAD' is the name of streams[0] already" in found["streams[1].name"]
    there = [DEAD | {"connection": "main"}, again | {"connection": "edge"}]
    Settings(connections=TWO, streams=there)


def test_two_streams_of_one_connection_share_no_subject() -> None:
    other = {"name": "OTHER", "subjects": ["x", "dead.a.*"]}
    found = problems(lambda: Settings(connections=MAIN, streams=[DEAD, other]))
    assert "'dead.a.*' overlaps with 'dead.>' of streams[0] (DEAD)" in found["streams[1].subjects[1]"]
    Settings(connections=TWO, streams=[DEAD | {"connection": "main"}, other | {"connection": "edge"}])


def test_a_mistake_elsewhere_hides_no_problem_of_a_stream() -> None:
    bad = DEAD | {"subjects": ["a..b"]}
    found = problems(lambda: Settings(connections=MAIN, routes=[{"name": "r"}], streams=[bad]))
    assert "streams[0].subjects[0]" in found


@pytest.mark.parametrize(
    ("found", "differences"),
    [
        ({}, []),
        ({"subjects": ("b", "a")}, []),
        ({"duplicate_window": 120.0}, []),
        ({"subjects": ("a",)}, ["subjects is [a] there and [a, b] here"]),
        ({"max_age": 60.0, "max_messages": 5}, ["max_age is 60s there and none here", "max_messages is 5 there"]),
        ({"allow_batched": True}, ["allow_batched is true there and false here"]),
        ({"transform": ("a", "x.a")}, []),
    ],
)
def test_differences_from_the_existing_stream_are_named(found: dict[str, Any], differences: list[str]) -> None:
    wanted = StreamConfig("S", ("a", "b"))
    named = wanted.differences(StreamConfig(**({"name": "S", "subjects": ("a", "b")} | found)))
    assert len(named) == len(differences)
    assert all(one.startswith(start) for one, start in zip(named, differences, strict=True))
    if not found:
        window = StreamConfig("S", ("a", "b"), duplicate_window=60.0)
        assert window.differences(StreamConfig("S", ("a", "b"), duplicate_window=120.0)) == [
            "duplicate_window is 120s there and 60s here"
        ]
        partitions = StreamConfig("S", ("a", "b"), transform=(">", "{{partition(4)}}.>"))
        assert partitions.differences(StreamConfig("S", ("a", "b"))) == [
            "partitions is none there and > -> {{partition(4)}}.> here"
        ]


def test_thousands_of_streams_are_not_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return overlaps(one, other)

    monkeypatch.setattr(checks_of_streams, "overlaps", compare)
    monkeypatch.setattr(patterns, "overlaps", compare)
    monkeypatch.setattr(warnings, "overlaps", compare)
    count = 300
    streams = [{"name": f"S{number}", "subjects": [f"s{number}.>"]} for number in range(count)]
    routes = [
        {"name": f"r{n}", "from": {"stream": f"S{n}", "durable": "d", "filter": f"s{n}.a.*"}, "to": [{"subject": "x"}]}
        for n in range(count)
    ]
    settings = Settings(connections={"main": {"servers": ["nats://h"]}}, routes=routes, streams=streams)
    assert list(warnings.warnings(settings.connections, settings.routes, settings.streams)) == []
    assert len(compared) <= 3 * count
