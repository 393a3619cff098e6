"""The variables of a message: raw headers, the body, and that each fast path equals its slow path."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_trio.errors import EvaluationError
from router_trio.expressions.body import decode as decode_body
from router_trio.expressions.body import reader_for
from router_trio.expressions.expression import compile_expression, trace
from router_trio.expressions.message import MESSAGE_VARIABLES, STREAM_VARIABLES, Facts
from router_trio.expressions.values import Timestamp
from router_trio.protocol.headers import Headers, decode, encode
from tests.support.drawn import examples
from tests.unit.expressions.activation import Activation

BLOCK = encode(Headers([("region", "eu"), ("X-Trace", "1"), ("region", "us"), ("empty", "")]))


def facts(**changes: object) -> Facts:
    given: dict[str, object] = {"subject": "orders.eu.7", "header_block": BLOCK, "payload": b'{"total": 7}'}
    return Facts(**{**given, **changes})  # type: ignore[arg-type]


def outcome(text: str, message: object) -> str:
    try:
        value = compile_expression(text, STREAM_VARIABLES).evaluate(message)
    except EvaluationError as error:
        return f"fails: {error}"
    return repr(value)


def traced(text: str, message: object) -> str:
    """Return the outcome of an expression compiled without folded constants and fast paths."""
    _, value = trace(compile_expression(text, STREAM_VARIABLES), message)[-1]
    return f"fails: {value}" if isinstance(value, EvaluationError) else repr(value)


def test_a_message_has_all_variables() -> None:
    message = facts(stream="ORDERS", sequence=12, deliveries=2, time_ns=1_700_000_000_000_000_001)
    assert outcome("subject", message) == "'orders.eu.7'"
    assert outcome("tokens[1]", message) == "'eu'"
    assert outcome("headers['region']", message) == "'eu'"
    assert outcome("headers", message) == "{'region': 'eu', 'X-Trace': '1', 'empty': ''}"
    assert outcome("body.total", message) == "7"
    assert outcome("payload", message) == "b'{\"total\": 7}'"
    assert outcome("size", message) == "12"
    assert outcome("[stream, string(sequence), string(deliveries)]", message) == "['ORDERS', '12', '2']"
    assert outcome("time", message) == repr(Timestamp(1_700_000_000_000_000_001))


def test_a_core_message_has_no_sequence() -> None:
    for name in ("stream", "sequence", "deliveries", "time"):
        assert outcome(name, facts()) == f"fails: the variable '{name}' has no value"


def test_unused_variables_are_not_decoded() -> None:
    message = facts(payload=b"no JSON at all", header_block=BLOCK)
    assert outcome("headers['region'] == 'eu' && 'X-Trace' in headers && size > 3", message) == "True"
    assert outcome("body.total > 5", message) == "fails: the body is not JSON"
    assert outcome("has(body.total)", message) == "fails: the body is not JSON"
    for name in ("headers", "tokens", "body"):
        with pytest.raises(AttributeError):
            object.__getattribute__(message, name)


def test_the_body_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(payload: bytes) -> object:
        calls.append(payload)
        return decode_body(payload)

    monkeypatch.setattr("router_trio.expressions.message.decode", counted)
    message = facts(payload=b'{"total": 7, "x": [1]}')
    for text in ("body.total == 7", "size(body.x) == 1", "body == {'total': 7, 'x': [1]}"):
        assert outcome(text, message) == "True"
    assert len(calls) == 1


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["region", "Region", "x", "regio", "region-2", ""]),
        st.sampled_from(["eu", " eu ", "us", "", "é", "eu:1", "\udcff", "region: eu"]),
    ),
    max_size=5,
)
HEADER_TEXTS = (
    "headers['region'] == 'eu'",
    "headers.region != 'eu'",
    "'us' == headers.region",
    "headers['region']",
    "headers.region",
    "has(headers.region)",
    "'region' in headers",
    "headers['Region'] == 'é'",
    "headers[''] == ''",
    "headers['a:b'] == ''",
    "headers['region\\r\\nx'] == 'eu'",
    "'x:' in headers",
    "headers['é'] == 'a'",
)


@pytest.mark.slow
@given(HEADERS, st.sampled_from(["", "\r\n", "no colon\r\n", "x\r\n\r\n", ": y\r\n"]))
@settings(max_examples=examples(300), deadline=None)
def test_a_header_has_the_same_value_raw_and_decoded(pairs: list[tuple[str, str]], odd: str) -> None:
    lines = "".join(f"{name}:{value}\r\n" for name, value in pairs) + odd
    block = b"NATS/1.0\r\n" + lines.encode("utf-8", "surrogateescape") + b"\r\n"
    first: dict[str, str] = {}
    for name, value in decode(block).pairs():
        first.setdefault(name, value)
    for text in HEADER_TEXTS:
        raw = outcome(text, facts(header_block=block))
        assert raw == outcome(text, Activation({"headers": first})), text
        slow = traced(text, facts(header_block=block))
        assert raw == slow or (raw.startswith("fails: there is no header") and slow.startswith("fails: ")), text


RAW_TEXTS = ("headers['region']", "headers.region", "headers['Region']", "headers['a:b']", "headers['']")
RAW_TESTS = (*HEADER_TEXTS[:3], *HEADER_TEXTS[7:11], "headers.region == headers.x", "headers.region == 'us'", "true")


@pytest.mark.slow
@given(HEADERS, st.sampled_from(["", "\r\n", "no colon\r\n", "x\r\n\r\n", ": y\r\n"]), st.booleans())
@settings(max_examples=examples(300), deadline=None)
def test_a_header_has_the_same_value_in_a_raw_message_and_in_its_block(
    pairs: list[tuple[str, str]], odd: str, ended: bool
) -> None:
    lines = "".join(f"{name}:{value}\r\n" for name, value in pairs) + odd
    block = b"NATS/1.0\r\n" + lines.encode("utf-8", "surrogateescape") + b"\r\n" * ended
    body = b"\r\nregion: eu\r\nRegion: x\r\n"  # a payload that looks like headers
    size = len(block) + len(body)
    raw = (b"in", b"", len(block), size, b"%d %d\r\n%b%b\r\n" % (len(block), size, block, body))

    def read(text: str, part: str) -> str | None:
        direct = getattr(compile_expression(text, MESSAGE_VARIABLES), part)
        if direct is None:
            return None
        try:
            value = direct(raw)
        except EvaluationError as error:
            return f"fails: {error}"
        return repr(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)

    for text in RAW_TEXTS:
        assert read(text, "header_value") in (outcome(text, facts(header_block=block)), None), text
    for text in RAW_TESTS:
        assert read(text, "header_test") in (outcome(text, facts(header_block=block)), None), text
    assert read("headers.region", "header_value") is not None
    assert read("'us' == headers.region", "header_test") is not None
    assert read("headers.region == 'us' && true", "header_test") is None
    assert read("headers.region + 'x'", "header_value") is None


def test_several_expressions_on_one_header_search_it_once() -> None:
    message = facts()
    values = [outcome(f"headers.{text}", message) for text in ("region == 'us'", "region == 'eu'", "region != 'eu'")]
    assert values == ["False", "True", "False"]
    assert outcome("headers['X-Trace'] == '2'", message) == "False"
    assert outcome("headers['X-Trace'] == '1'", message) == "True"
    assert outcome("headers.region == 'eu'", message) == "True"
    assert outcome("headers.none == 'eu'", message) == "fails: there is no header 'none'"


def test_an_unterminated_header_block_is_read() -> None:
    for block in (b"", b"NATS/1.0", b"NATS/1.0\r\nregion: eu", b"NATS/1.0 503\r\n\r\n"):
        found = "'eu'" if b"region" in block else "fails: there is no header 'region'"
        assert outcome("headers.region", facts(header_block=block)) == found
        assert outcome("size(headers)", facts(header_block=block)) == ("1" if b"region" in block else "0")


NUMBERS = st.one_of(
    st.none(), st.booleans(), st.text(max_size=2), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 2.0**53, 2.0**63]),
)  # fmt: skip


@pytest.mark.slow
@given(
    NUMBERS,
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    NUMBERS.filter(lambda one: isinstance(one, int | float)),
)
@settings(max_examples=examples(500), deadline=None)
def test_comparing_a_field_with_a_number_equals_the_general_comparison(value: object, mark: str, bound: object) -> None:
    literal = str(bound).lower() if isinstance(bound, bool) else repr(bound)
    literal = {"inf": "double('inf')", "-inf": "double('-inf')"}.get(literal, literal)
    body = {"total": value}
    fused = outcome(f"body.total {mark} {literal}", Activation({"body": body}))
    plain = traced(f"body.total {mark} dyn({literal})", Activation({"body": body}))
    assert fused == plain
    if not isinstance(value, float) or abs(value) != float("inf"):
        payload = msgspec.json.encode(body)
        expression = compile_expression(f"body.total {mark} {literal}", STREAM_VARIABLES)
        message = facts(payload=payload, reader=reader_for([expression.body_fields]))
        assert outcome(f"body.total {mark} {literal}", message) == plain


def test_only_messages_of_streams_have_the_variables_of_a_stream() -> None:
    assert set(STREAM_VARIABLES) - set(MESSAGE_VARIABLES) == {"stream", "sequence", "deliveries", "time"}
