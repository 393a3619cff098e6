"""Bodies: how JSON is decoded, what is refused, and that a record of some fields equals the decoded body."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router_trio.errors import EvaluationError
from router_trio.expressions.body import WITHOUT_RECORDS, BodyReader, decode, reader_for
from router_trio.expressions.expression import Expression, compile_expression
from router_trio.expressions.message import MESSAGE_VARIABLES, Facts
from tests.support.drawn import examples


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (b"1", 1),
        (b"-0", 0),
        (b"1.0", 1.0),
        (b"1e2", 100.0),
        (b"9223372036854775807", 2**63 - 1),
        (b"9223372036854775808", float(2**63)),
        (b"-9223372036854775808", -(2**63)),
        (b"-9223372036854775809", -float(2**63)),
        (b"1" + b"0" * 30, 1e30),
        (b"1" + b"0" * 400, float("inf")),
        (b"-1" + b"0" * 5000, float("-inf")),
        (b"[1e400, -1e400, 1e-400]", [float("inf"), float("-inf"), 0.0]),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'{"12345678901234567890": "12345678901234567890"}', {"12345678901234567890": "12345678901234567890"}),
        (b'"\\ud83d\\ude03"', "😃"),
        (b' {"a": [null, true]} ', {"a": [None, True]}),
    ],
)
def test_json_is_decoded(payload: bytes, value: Any) -> None:
    decoded = decode(payload)
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"{",
        b"{} x",
        b"NaN",
        b"[1,]",
        b"01",
        b"'a'",
        b'"\xff"',
        b'"\\ud800"',
        b"\xef\xbb\xbf1",
        b'"\n"',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"[{" * 100_000,
        b"]" * 1000 + b"[" * 1000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[1e400, NaN]",
        b'[1e400, "\\ud800"]',
    ],
)
def test_a_body_that_is_not_json_fails(payload: bytes) -> None:
    with pytest.raises(EvaluationError, match="body"):
        decode(payload)


def test_a_deeply_nested_long_number_is_decoded_or_refused() -> None:
    """The maximum depth of a body depends on Python. A body that is too deep is an error of the message."""
    for depth in (10, 900, 5000):
        with contextlib.suppress(EvaluationError):
            value = decode(b"[" * depth + b"18446744073709551616" + b"]" * depth)
            while isinstance(value, list):
                (value,) = value
            assert type(value) is float


TEXTS = (
    'has(body.total) && body.total > 100',
    'body.total',
    'body.customer.id',
    'body.flag == true',
    'body.total == body.customer.id',
    'has(body.customer.id)',
    'body.a.b.c',
    'has(body.a.b.c)',
    'size(body.items)',
    'body.items.exists(i, i == body.total)',
    '{"t": body.total, "i": body.items}',
    'string(body.customer.id) + "x"',
)  # fmt: skip
EXPRESSIONS = {text: compile_expression(text, MESSAGE_VARIABLES) for text in TEXTS}
READERS = {text: reader_for([one.body_fields]) for text, one in EXPRESSIONS.items()}
TOGETHER = reader_for(one.body_fields for one in EXPRESSIONS.values())

KEYS = st.sampled_from(["total", "customer", "id", "flag", "items", "a", "b", "c", "x", "é"])
NUMBERS = st.sampled_from([0, 1, -1, 101, 2**53 + 1, 2**63, -(2**63), 2**64, 10**25, 0.5, 100.5, 1e300])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "a", "é", "\ud83d", "123456789012345678901234"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


def ended(expression: Expression, payload: bytes, reader: BodyReader) -> tuple[str, str]:
    try:
        value = expression.evaluate(Facts("a.b", b"", payload, reader))
    except EvaluationError as error:
        return "failed", str(error)
    return type(value).__name__, repr(value)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Generate JSON, possibly with a mistake."""
    body = json.dumps(draw(st.dictionaries(KEYS, VALUES, max_size=6) | VALUES), ensure_ascii=draw(st.booleans()))
    payload = body.encode("utf-8", "surrogatepass")
    change = draw(st.integers(0, 5))
    at = draw(st.integers(0, len(payload)))
    piece = draw(
        st.sampled_from([b"", b"\xff", b"\\ud800", b"1e400", b"[", b"{", b'"', b"}", b",", b"\n", b"0", b"NaN"])
    )
    if change == 0:
        return payload[:at] + piece + payload[at:]
    if change == 1:
        return payload[:at] + piece + payload[at + 1 :]
    return payload


@pytest.mark.slow
@given(payloads())
@settings(max_examples=examples(500), deadline=None)
@example(b'{"total": 1e400, "x": "\xff"}')
@example(b'{"x": 1e400, "total": 1}')
@example(b'{"x": 18446744073709551616, "total": 18446744073709551616, "items": [18446744073709551616]}')
@example(b'{"total": 1, "x": "\\ud800"}')
@example(b'{"total": 1, "total": "a", "customer": {"id": 1}, "customer": {}}')
@example(b'{"total": 1}x')
@example(b'{"total": 1, "x": ' + b"[" * 200 + b"]" * 200 + b"}")
def test_a_record_gives_the_same_as_the_decoded_body(payload: bytes) -> None:
    for text, expression in EXPRESSIONS.items():
        whole = ended(expression, payload, WITHOUT_RECORDS)
        assert ended(expression, payload, READERS[text]) == whole
        assert ended(expression, payload, TOGETHER) == whole


def test_a_record_is_used_where_possible() -> None:
    reader = reader_for([EXPRESSIONS["body.total"].body_fields])
    assert reader.record(b'{"total": 5, "x": [{}]}').f_total == 5
    assert reader.record('{"total": "é"}'.encode()).f_total == "é"
    assert reader.record(b"{}").f_total is msgspec.UNSET
    for left_out in (b"[]", b'{"total": []}', b'{"total": 18446744073709551616}', b'{"total": 1, "x": "\\u00e9"}'):
        assert reader.record(left_out) is None


def test_several_expressions_share_a_reader() -> None:
    one, other = compile_expression("body.a.b > 1", MESSAGE_VARIABLES), compile_expression("body.a", MESSAGE_VARIABLES)
    whole = compile_expression("body", MESSAGE_VARIABLES)
    assert reader_for([one.body_fields]).record(b'{"a": {"b": 2}}').f_a.f_b == 2
    assert reader_for([one.body_fields, other.body_fields]).record(b'{"a": {"b": 2}}') is None
    assert reader_for([one.body_fields, whole.body_fields]) is WITHOUT_RECORDS
    assert reader_for([]).record(b"{}") is None


# --- long bodies, and their cost ---

LONG_NUMBERS = st.builds(
    lambda sign, digits, fraction, exponent: sign + digits + fraction + exponent,
    st.sampled_from(["", "-"]),
    st.sampled_from(["0", "7", "1" * 18, "9" * 19, "1" + "0" * 399, "1" * 401, "9" * 4301, "1" + "0" * 6000]),
    st.sampled_from(["", ".0", ".5", "." + "3" * 500, "." + "0" * 5000 + "1"]),
    st.sampled_from(["", "e0", "E5", "e300", "e-300", "e-0400", "e+400", "e-" + "0" * 450 + "5", "e" + "9" * 450]),
)
STRINGS = st.text(alphabet='a"\\{}[]:,0', max_size=6).map(json.dumps) | st.just(json.dumps("1" * 5000))


def parsed(payload: str) -> Any:
    """Decode JSON with Python's `json`, by the rules of `expressions/body.py`."""

    def whole(digits: str) -> Any:
        value = float(digits) if len(digits) > 400 else int(digits)
        return value if -(2**63) <= value < 2**63 and isinstance(value, int) else float(digits)

    return json.loads(payload, parse_int=whole)


@given(st.lists(LONG_NUMBERS | STRINGS, min_size=1, max_size=4), st.sampled_from(["", "x" * 1100]))
@settings(max_examples=examples(400), deadline=None)
def test_numbers_of_any_length_are_decoded_as_by_python(parts: list[str], filling: str) -> None:
    """In a short body and in a long one, which are decoded differently."""
    payload = f'[{",".join(parts)}, "{filling}"]'
    assert repr(decode(payload.encode())) == repr(parsed(payload))


def test_a_body_that_is_not_json_is_decoded_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return decode(*given)

    monkeypatch.setattr("router_trio.expressions.message.decode", counted)
    text = "[1, 2, 3].exists(x, body.a == x || body.b == x) || has(body.c)"
    message = Facts("a", b"", b'{"a": 1')
    for _ in range(2):
        with pytest.raises(EvaluationError, match="the body is not JSON"):
            compile_expression(text, MESSAGE_VARIABLES).evaluate(message)
    assert calls == 1


def test_a_body_that_exceeds_the_budget_fails() -> None:
    for payload in (b"[" + b"[]," * 400_000 + b"1]", b"[" + b"1e300," * 200_000 + b"1]"):
        with pytest.raises(EvaluationError, match="the body takes too long to decode"):
            decode(payload)
        message = Facts("a", b"", payload)
        with pytest.raises(EvaluationError, match="takes too long"):
            compile_expression("body[0] == 1 || true", MESSAGE_VARIABLES).evaluate(message)
