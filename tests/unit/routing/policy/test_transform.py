"""The changes that a destination makes to the payload and headers of a copy."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.errors import EvaluationError
from router_trio.expressions.message import Facts
from router_trio.protocol.headers import END, VERSION, Headers, decode, encode
from router_trio.routing.policy.transform import Transform
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import Settings

LARGEST = 1_000
BODY = b'{"id": 7, "total": 150.0, "region": "eu", "big": "%b"}' % (b"x" * 2_000)


def transform_of(**to: Any) -> Transform:
    """Return the transform of a destination in a configuration."""
    settings = Settings(
        connections={"main": {"servers": ["nats://h"]}},
        routes=[{"name": "r", "from": {"subject": "in.*"}, "to": [{"subject": "out", "jetstream": True, **to}]}],
    )
    [plan] = compile_routes(settings)
    transform = plan.destinations[0].transform()
    assert transform is not None
    assert plan.transforms
    return transform


def facts(block: bytes = b"", payload: bytes = BODY) -> Facts:
    return Facts("in.7", block, payload)


def block_of(*pairs: tuple[str, str]) -> bytes:
    return encode(Headers(pairs))


# --- payload ---


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ('{"total": double(body.total) * 100.0, "id": body.id}', b'{"id":7,"total":15000.0}'),
        ("[body.region, subject]", b'["eu","in.7"]'),
        ("subject", b"in.7"),
        ("b'\\xff'", b"\xff"),
        ("body.id", b"7"),
        ("null", b"null"),
    ],
)
def test_a_payload_is_computed_by_its_expression(payload: str, expected: bytes) -> None:
    assert transform_of(payload=payload).payload(facts(), BODY, LARGEST) == expected


def test_without_an_expression_the_payload_is_unchanged() -> None:
    transform = transform_of(ttl="1h")
    assert transform.payload(facts(), BODY, LARGEST) is BODY


@pytest.mark.parametrize("payload", ["body.nothing", "body.big", '{"a": body.big}'])
def test_a_payload_that_fails_or_is_too_large_fails_the_message(payload: str) -> None:
    with pytest.raises(EvaluationError):
        transform_of(payload=payload).payload(facts(), BODY, LARGEST)


# --- headers ---


def test_headers_are_set_in_order_and_replace_those_of_the_same_name_in_any_case() -> None:
    original = block_of(("x-REGION", "us"), ("Kept", "1"), ("X-Region", "asia"), ("Kept", "2"))
    transform = transform_of(headers={"set": {"X-Region": "body.region", "X-Id": "body.id", "X-Router": '"trio"'}})
    assert transform.changes_headers
    assert decode(transform.headers(facts(original), original, LARGEST)).pairs() == (
        ("Kept", "1"),
        ("Kept", "2"),
        ("X-Region", "eu"),
        ("X-Id", "7"),
        ("X-Router", "trio"),
    )


def test_an_expression_sees_the_original_headers() -> None:
    original = block_of(("A", "one"), ("B", "two"))
    transform = transform_of(headers={"set": {"A": 'headers["B"]', "B": 'headers["A"]'}})
    assert decode(transform.headers(facts(original), original, LARGEST)).pairs() == (("A", "two"), ("B", "one"))


def test_headers_are_set_on_a_message_without_headers() -> None:
    transform = transform_of(headers={"set": {"A": "subject"}})
    assert transform.headers(facts(), b"", LARGEST) == block_of(("A", "in.7"))


@pytest.mark.parametrize("block", [b"NATS/1.0\r\nB: 1", b"NATS/1.0\r\nB: 1\r\n", b"NATS/1.0\r\nB: 1\r\n\r\n"])
def test_an_unterminated_block_is_terminated(block: bytes) -> None:
    transform = transform_of(headers={"set": {"A": "subject"}})
    assert transform.headers(facts(block), block, LARGEST) == block_of(("B", "1"), ("A", "in.7"))


def test_headers_are_removed_in_any_case_with_their_continuation_lines() -> None:
    original = VERSION + b"\r\nX-Internal: a\r\n folded\r\nB: 1\r\nx-internal : b\nX-INTERNAL: c" + END
    transform = transform_of(headers={"remove": ["X-Internal"]})
    assert transform.headers(facts(original), original, LARGEST) == block_of(("B", "1"))


def test_removing_the_only_headers_leaves_no_block() -> None:
    original = block_of(("X-Internal", "a"), ("X-Other", "b"))
    transform = transform_of(headers={"remove": ["X-Internal", "X-Other"]})
    assert transform.headers(facts(original), original, LARGEST) == b""
    assert transform.headers(facts(), b"", LARGEST) == b""


def test_a_header_whose_name_only_starts_alike_is_kept() -> None:
    original = block_of(("X-Internal-Id", "a"), ("AX-Internal", "b"))
    transform = transform_of(headers={"remove": ["X-Internal"]})
    assert transform.headers(facts(original), original, LARGEST) is original


def test_without_changed_headers_the_block_is_unchanged() -> None:
    original = block_of(("A", "1"))
    transform = transform_of(payload="subject")
    assert not transform.changes_headers
    assert transform.headers(facts(original), original, LARGEST) is original


@pytest.mark.parametrize("value", ["body.nothing", "body.big", "'a\\r\\nB: 1'", "dyn([1])"])
def test_a_header_that_fails_or_would_break_the_block_fails_the_message(value: str) -> None:
    with pytest.raises(EvaluationError):
        transform_of(headers={"set": {"A": value}}).headers(facts(), b"", LARGEST)


def test_header_bytes_that_are_not_utf8_are_kept() -> None:
    original = VERSION + b"\r\nA: \xff" + END
    transform = transform_of(headers={"set": {"B": 'headers["A"]'}})
    assert transform.headers(facts(original), original, LARGEST) == VERSION + b"\r\nA: \xff\r\nB: \xff" + END


# --- ttl ---


@pytest.mark.parametrize(("ttl", "seconds"), [("1h", b"3600s"), ("1s", b"1s"), ("1h30m", b"5400s")])
def test_a_ttl_is_in_whole_seconds_and_replaces_a_kept_one(ttl: str, seconds: bytes) -> None:
    original = block_of(("nats-ttl", "never"), ("A", "1"))
    transform = transform_of(ttl=ttl)
    assert transform.headers(facts(original), original, LARGEST) == VERSION + b"\r\nA: 1\r\nNats-TTL: " + seconds + END
