"""Conversion of values to payloads and header values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import EvaluationError
from router_trio.expressions.body import decode
from router_trio.expressions.expression import compile_expression
from router_trio.expressions.message import MESSAGE_VARIABLES, Facts
from router_trio.expressions.output import header_of, json_of, payload_of
from router_trio.expressions.values import MAX_NESTING, equal

LARGEST = 1000


def value(text: str) -> Any:
    return compile_expression(text, MESSAGE_VARIABLES).evaluate(Facts("a", b"NATS/1.0\r\nraw: \xff\r\n\r\n", b"{}"))


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("'a\\n\"é'", 'a\n"é'.encode()),
        ("b'\\xff\\x00'", b"\xff\x00"),
        ("headers.raw", b"\xff"),
        ("1", b"1"),
        ("18446744073709551615u", b"18446744073709551615"),
        ("1.0", b"1.0"),
        ("0.1 + 0.2", b"0.30000000000000004"),
        ("1e300", b"1e300"),
        ("true", b"true"),
        ("null", b"null"),
        ("[]", b"[]"),
        ("{}", b"{}"),
        (
            "{'b': 1, 'a': [1.5, 2u, null, 'é', b'\\xff'], 'é': {}, 'B': true}",
            '{"B":true,"a":[1.5,2,null,"é","/w=="],"b":1,"é":{}}'.encode(),
        ),
        ("{1: 'a', 10: 'b', 9: 'c'}", b'{"1":"a","10":"b","9":"c"}'),
        ("{true: 1u}", b'{"true":1}'),
        ("[timestamp('2026-01-31T08:00:00.5Z'), duration('1m30s')]", b'["2026-01-31T08:00:00.500Z","90s"]'),
        ("timestamp(0)", b"1970-01-01T00:00:00Z"),
        ("duration('-1.5s')", b"-1.500s"),
        ("['\\n\\t\\\"\\\\/\\u2028\\x01']", '["\\n\\t\\"\\\\/\u2028\\u0001"]'.encode()),
    ],
)  # fmt: skip
def test_a_value_becomes_a_payload(text: str, payload: bytes) -> None:
    assert payload_of(value(text), LARGEST) == payload


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[1.0 / 0.0]", "not finite"),
        ("0.0 / 0.0", "not finite"),
        ("{'a': int}", "a type can't be written as JSON"),
        ("[headers.raw]", "not valid UTF-8"),
        ("{'1': 2, 1: 3}", "two keys of the map are the same in JSON"),
    ],
)
def test_a_value_that_can_not_be_a_payload_fails(text: str, error: str) -> None:
    with pytest.raises(EvaluationError, match=error) as caught:
        payload_of(value(text), LARGEST)
    assert caught.value.reason == "expression"


@pytest.mark.parametrize(
    "text",
    [
        "'" + "a" * 1001 + "'",
        "['" + "a" * 1001 + "']",
        "'" + "é" * 501 + "'",
        "['" + "\\n" * 600 + "']",
        "[b'" + "a" * 800 + "']",
    ],
)
def test_a_payload_that_is_too_large_has_the_reason_of_any_message_that_is(text: str) -> None:
    with pytest.raises(EvaluationError, match="larger than 1000 bytes") as caught:
        payload_of(value(text), LARGEST)
    assert caught.value.reason == "too_large"


def test_a_value_shared_many_times_is_refused_before_it_is_written() -> None:
    shared: Any = ["x"]
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(EvaluationError, match="takes too long"):
        json_of(shared, 1024**2)
    deep: Any = []
    for _ in range(MAX_NESTING + 1):
        deep = [deep]
    with pytest.raises(EvaluationError, match="nested"):
        json_of(deep, 1024**2)


@pytest.mark.parametrize(
    ("text", "header"),
    [("'a b'", "a b"), ("''", ""), ("12", "12"), ("12u", "12"), ("1.5", "1.5"), ("2.0", "2"), ("true", "true"),
     ("headers.raw", "\udcff")],
)  # fmt: skip
def test_a_value_becomes_a_header(text: str, header: str) -> None:
    assert header_of(value(text), LARGEST) == header


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("null", "a null can't be the value of a header"),
        ("[1]", "a list can't"),
        ("b'a'", "a bytes can't"),
        ("timestamp(0)", "a timestamp can't"),
        ("'a\\r\\nb: c'", "CR, LF or NUL"),
        ("'a\\x00'", "CR, LF or NUL"),
    ],
)
def test_a_value_that_can_not_be_a_header_fails(text: str, error: str) -> None:
    with pytest.raises(EvaluationError, match=error) as caught:
        header_of(value(text), LARGEST)
    assert caught.value.reason == "expression"


@pytest.mark.parametrize("text", ["'" + "a" * 1001 + "'", "'" + "é" * 501 + "'"])
def test_a_header_that_is_too_large_has_the_reason_of_any_message_that_is(text: str) -> None:
    with pytest.raises(EvaluationError, match="larger than 1000 bytes") as caught:
        header_of(value(text), LARGEST)
    assert caught.value.reason == "too_large"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(JSON)
def test_written_json_is_read_back_as_the_same_value(value: Any) -> None:
    written = json_of(value, 100_000)
    again = decode(written)
    assert equal(again, value)
    assert json_of(again, 100_000) == written
    assert json.loads(written) == value
    if isinstance(value, dict):
        assert list(again) == sorted(again)
