"""The sentence in which `check` and `explain` describe what happens to messages that fail."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.cli.explain_message import explain_message
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import Settings
from router_trio.settings.guarantee import guarantee

STREAM = {"stream": "S", "durable": "d", "filter": "in.*"}
SUBJECT = {"subject": "in.*"}
CALLED = {"handler": "package.module:function"}
DEAD = {"subject": "dead.{{wildcard(1)}}"}


def made(source: dict[str, Any], **route: Any) -> Settings:
    whole = {"name": "r", "from": source, "to": [{"subject": "out.x"}], **route}
    return Settings(connections={"main": {"servers": ["nats://127.0.0.1:4222"]}}, routes=[whole])


@pytest.mark.parametrize(
    ("source", "route", "sentence"),
    [
        (STREAM, {}, ""),
        (SUBJECT, {}, ""),
        (STREAM, {"retry": {}}, "at least once; retried without end"),
        (
            STREAM,
            {"retry": {"attempts": 5}, "dead_letter": DEAD},
            "at least once; at most 5 attempts; dead letters in dead.*",
        ),
        (STREAM, {"retry": {"attempts": 5}}, "at least once; at most 5 attempts; then given up"),
        (
            STREAM,
            {"dead_letter": DEAD},
            "at least once; retried without end; nothing is given up, so there are no dead letters",
        ),
        (
            STREAM,
            {"retry": {"attempts": 5, "not": ["mapping", "handler_error:KeyError"]}},
            "at least once; at most 5 attempts; not retried after mapping, handler_error:KeyError; then given up",
        ),
        (SUBJECT, {"retry": {"attempts": 2}}, "at most once; at most 2 attempts from memory; then lost"),
        (SUBJECT, {"retry": {"attempts": 1, "not": ["mapping"]}}, "at most once; not retried; then lost"),
        (SUBJECT, {"retry": {}}, "at most once; retried from memory without end"),
        (SUBJECT, {"dead_letter": DEAD}, "at most once; not retried; dead letters in dead.*"),
        (STREAM, {"key": "body.id"}, "at least once; in order for each body.id within one process"),
        (STREAM | {"standby": True}, {"key": "body.\n  id"}, "at least once; in order for each body. id"),
        (
            STREAM,
            CALLED | {"concurrency": 32, "retry": {"attempts": 5}, "dead_letter": DEAD},
            "at least once; in order for each subject within one process; up to 32 concurrent handler calls; "
            "at most 5 attempts; dead letters in dead.*",
        ),
        (STREAM, CALLED | {"thread": True}, "at least once; one handler call at a time, in a thread"),
        (
            SUBJECT,
            CALLED | {"thread": True, "concurrency": 2, "key": "subject"},
            "at most once; in order for each subject; up to 2 concurrent handler calls in threads",
        ),
        (
            SUBJECT | {"queue": "q"},
            CALLED | {"key": "size"},
            "at most once; in order for each size within one process",
        ),
        (STREAM | {"partitions": 4}, {}, "at least once; in order for each subject, over all processes"),
        (
            STREAM | {"partitions": 4, "partition_by": [1]},
            CALLED | {"concurrency": 8, "retry": {"attempts": 5}},
            "at least once; in order for each value of wildcard 1 of the filter, over all processes; up to 8 "
            "concurrent handler calls; at most 5 attempts; then given up",
        ),
        (
            STREAM | {"partitions": 4},
            CALLED | {"key": "body.id"},
            "at least once; in order for each body.id within a partition, over all processes",
        ),
        (SUBJECT, {"key": "size", "strategy": "sticky"}, ""),
        (STREAM, {"concurrency": 8}, ""),
    ],
)
def test_check_and_explain_describe_the_guarantee_in_one_sentence(
    source: dict[str, Any], route: dict[str, Any], sentence: str
) -> None:
    settings = made(source, **route)
    assert guarantee(settings.routes[0]) == sentence
    found = explain_message(compile_routes(settings), "in.7")
    assert found.routes[0].as_json().get("guarantee", "") == sentence
    assert (f"  {sentence}" in found.lines()) is bool(sentence)
