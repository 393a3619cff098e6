"""Checkpoints as any client may have stored them: read within bounds, or refused with one kind of error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router_trio.errors import SourceError
from router_trio.position.standing import Standing

GOOD: dict[str, Any] = {
    "stream": "SOURCE",
    "consumer": "billing",
    "floor": 3,
    "delivered": 9,
    "unacked": 4,
    "deliveries": 7,
    "pending": 0,
    "since": 1_790_000_000_000_000_000,
    "at": "2026-11-29T06:00:00.123456789Z",
    "fields": {"ack_policy": "explicit", "filter_subject": "source.1"},
}


def body(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_a_checkpoint_is_read_as_it_was_saved() -> None:
    standing = Standing.from_bytes(body())
    assert standing == Standing(**GOOD)
    assert Standing.from_bytes(standing.to_bytes()) == standing
    assert standing.filters == ("source.1",)


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (b"\xff\xfe", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"null", "it is not a JSON object"),
        (b"{}", "fields is not an object"),
        (b'{"floor": Infinity}', "Infinity is not JSON"),
        (b'{"floor": 1e999, "fields": {}}', "floor is not a whole number"),
        (body(padding="x" * 2**20), "it has more than"),
        (body(floor=True), "floor is not a whole number"),
        (body(floor="3"), "floor is not a whole number"),
        (body(floor=-1), "floor is not a whole number"),
        (body(floor=2**64, delivered=2**64), "floor is not a whole number"),
        (body(delivered=2), "delivered is not a whole number from 3"),
        (body(unacked=-1), "unacked is not a whole number"),
        (body(deliveries="7"), "deliveries is not a whole number"),
        (body(since=10**30), "since is not a whole number"),
        (body(at="\x1b[31m"), "at is not a printable text"),
        (body(at="today"), "at is not a time"),
        (body(stream="\ud800"), "stream is not a printable text"),
        (body(consumer="x" * 256), "consumer is not a printable text"),
        (body(fields=[["ack_policy", "explicit"]]), "fields is not an object"),
        (body(fields={"filter_subject": 5}), "fields.filter_subject is not a text"),
        (body(fields={"filter_subject": "a\r\nb"}), "a filter subject is not printable"),
        (body(fields={"filter_subjects": "source.1"}), "fields.filter_subjects is not a list"),
        (
            body(fields={"filter_subjects": [None]}),
            "fields.filter_subjects is not a list of at most 10000 texts",
        ),
        (body(fields={"filter_subjects": ["a", "\udcff"]}), "a filter subject is not printable"),
    ],
)
def test_anything_else_is_refused(stored: bytes, why: str) -> None:
    with pytest.raises(SourceError) as refused:
        Standing.from_bytes(stored)
    assert str(refused.value).startswith(f"the checkpoint is not valid: {why}")
