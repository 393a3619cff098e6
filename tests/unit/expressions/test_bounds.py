"""No message makes an expression slow, and nothing but the two documented errors is raised."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_trio.errors import EvaluationError, ExpressionError
from router_trio.expressions.expression import compile_expression, trace
from router_trio.expressions.functions import patterns
from router_trio.expressions.language.signatures import FUNCTIONS, OPERATORS
from router_trio.expressions.language.types import DYN
from router_trio.expressions.message import STREAM_VARIABLES, Facts
from router_trio.expressions.output import header_of, payload_of
from router_trio.expressions.values import Duration, Timestamp, Uint
from router_trio.routing.policy.sticky import key_of
from tests.performance.growth import written
from tests.support.drawn import examples
from tests.unit.expressions.activation import Activation

LONGEST = 2.0
"""Maximum seconds of one evaluation in these tests: many times what it takes on an idle machine."""

MANY = list(range(50_000))
WORDS = ["word" * 3] * 20_000
BIG = "a" * 500_000
DRAWN = "".join(Random(1).choices("ab", k=500_000))
"""A text in which each character leads to a new state of a pattern such as `a[ab]{600}z`."""
NESTED: Any = [0]
for _ in range(60):
    NESTED = [NESTED, NESTED]
HARD = {
    "many": MANY,
    "words": WORDS,
    "big": BIG,
    "big2": "a" * 499_999 + "b",
    "drawn": DRAWN,
    "pattern": "(a|b)*" * 80 + "c",
    "n": {str(i): i for i in MANY},
}
HARDEST = [
    "body.many.all(x, body.many.all(y, x + y >= 0))",
    "body.many.all(x, body.many.all(y, body.many.all(z, x + y + z >= 0)))",
    "body.many.map(x, body.many.map(y, body.many))",
    "body.many.all(x, body.many == body.many)",
    "body.many.all(x, !(-1 in body.many))",
    "body.words.all(x, body.big == body.big2 || true)",
    "body.words.all(x, body.big < body.big2)",
    "body.words.all(x, !body.big.contains('ab'))",
    "body.words.all(x, body.big.split('').size() > 0)",
    "body.words.all(x, body.big.upperAscii() != '')",
    "body.words.all(x, body.big.matches('(a*)*b') || true)",
    "body.words.all(x, x.matches(body.pattern + x) || true)",
    "body.big.matches(body.pattern)",
    "body.drawn.matches('a[ab]{600}z')",
    "body.words.map(x, body.big + x)",
    "body.words.map(x, body.big.replace('a', 'bb'))",
    "body.big.replace('', body.big)",
    "body.big.replace('a', body.big)",
    "body.words.join(body.big)",
    "body.big.split('a').map(x, body.big.split('a'))",
    "(body.big + body.big + body.big).size() > 0",
    "body.words.map(x, [x, x]).map(x, [x, x]).map(x, x + x).map(x, x + x)",
    "body.n.all(k, body.n.all(j, k + j != ''))",
    "body.words.exists_one(x, body.words.filter(y, y == x).size() == 0)",
    "".join(f"[1, 2, 3, 4].map({name}, " for name in "abcdefgh") + "1" + ")" * 8,
    "body.words.all(x, duration(x + '1s') == duration('1s') || true)",
    "int(body.big) == 1 || double(body.big) == 1.0 || true",
    "timestamp(body.big) == timestamp(body.big)",
    "time.getHours(body.big) == 1",
    "nested == nested",
    "nested in [nested, nested]",
    "nested.all(x, x == nested)",
]  # fmt: skip


@pytest.mark.parametrize("text", HARDEST)
def test_the_most_expensive_message_takes_bounded_time(text: str) -> None:
    expression = compile_expression(text, {**STREAM_VARIABLES, "nested": DYN})
    message = Activation({"body": HARD, "nested": NESTED, "time": None})
    began = time.process_time()
    try:
        value = expression.evaluate(message)
    except EvaluationError:
        value = None
    assert time.process_time() - began < LONGEST
    began = time.process_time()
    with contextlib.suppress(EvaluationError):
        payload_of(value, 1024**2)
    assert time.process_time() - began < LONGEST


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("body.drawn.matches('[ab]*a[ab]{20}z')", 1),
        ("body.drawn.substring(0, 60000).matches('a[ab]{' + '600}z')", 1),
        ("body.drawn.substring(0, 300).matches('a.{60}z')", 60),
        ("body.drawn.substring(0, 60).matches('a[ab]{600}z')", 2_000),
    ],
)
def test_searches_that_may_lead_to_new_states_at_each_character_are_charged(text: str, count: int) -> None:
    expression, message = compile_expression(text, STREAM_VARIABLES), Activation({"body": {"drawn": DRAWN}})
    with pytest.raises(EvaluationError, match="MAX_COST is used up"):
        collections.deque(expression.evaluate(message) for _ in range(count))


def test_a_pattern_is_searched_in_texts_of_ordinary_length() -> None:
    uuid = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    body = {"line": "x" * 100_000, "ids": ["0123abcd-0123-4567-89ab-0123456789ab"] * 3_000, "data": "Q+/=" * 250_000}
    for text in (
        "!body.line.matches('ERROR.*timeout [0-9]+')",
        f"body.ids.all(x, x.matches('{uuid}'))",
        "body.data.matches('^[A-Za-z0-9+/=]*$')",
    ):
        assert compile_expression(text, STREAM_VARIABLES).evaluate(Activation({"body": body})) is True, text


def test_an_ordinary_message_is_far_from_the_limits() -> None:
    body = {"items": [{"sku": f"sku-{n}", "price": n * 1.5, "tags": ["a", "b"]} for n in range(500)]}
    message = Facts("a", b"", json.dumps(body).encode())
    text = "body.items.filter(i, i.price > 10.0 && i.tags.exists(t, t == 'b')).map(i, {'sku': i.sku, 'price': i.price})"
    assert len(compile_expression(text, STREAM_VARIABLES).evaluate(message)) == 493


def test_three_evaluations_over_a_long_list_fit_into_the_budget() -> None:
    expression = compile_expression("body.many.exists(x, x == 15000)", STREAM_VARIABLES)
    message = Activation({"body": HARD})
    for _ in range(3):
        assert expression.evaluate(message) is True


WORDS_OF_THE_LANGUAGE = (
    *(function.name for function in FUNCTIONS),
    *(mark for function in OPERATORS for mark in function.shown.split(" ") if not mark.isalpha() or mark == "in"),
    *STREAM_VARIABLES, "has", "all", "exists", "exists_one", "map", "filter", "x", "y", "(", ")", "[", "]", "{", "}",
    ",", ".", ":", "?", "'a'", '"eu"', "b'x'", "1", "0", "2u", "1.5", "-", "null", "true", "false", "int", "list",
    "9223372036854775807", "'(a'", "//", "\n", "`a`", "'''", "\\", "é", "total", "google.protobuf.Timestamp",
)  # fmt: skip
BODIES = st.sampled_from(
    [b"", b"{}", b'{"total": 1, "x": [1, "a", null, true, {"y": 1.5}]}', b"[1]", b'"a"', b"\xff", b"null"]
)


def survives(text: str, payload: bytes) -> None:
    try:
        expression = compile_expression(text, STREAM_VARIABLES)
    except ExpressionError:
        return
    message = Facts("a.b", b"NATS/1.0\r\nx: 1\r\n\r\n", payload, stream="S", sequence=1, deliveries=1, time_ns=1)
    with contextlib.suppress(EvaluationError):
        payload_of(expression.evaluate(message), 1000)
    trace(expression, message)


@pytest.mark.slow
@given(st.lists(st.sampled_from(WORDS_OF_THE_LANGUAGE), max_size=14), st.sampled_from(["", " "]), BODIES)
@settings(max_examples=examples(2000), deadline=None)
def test_random_tokens_raise_nothing_but_the_documented_errors(words: list[str], between: str, payload: bytes) -> None:
    survives(between.join(words), payload)


@given(st.text(max_size=30), BODIES)
@settings(max_examples=examples(300), deadline=None)
def test_random_text_raises_nothing_but_the_documented_errors(text: str, payload: bytes) -> None:
    survives(text, payload)


def test_errors_do_not_quote_the_message() -> None:
    body = {"total": "SECRET", "SECRET": ["SECRET"]}
    message = Facts("a", b"NATS/1.0\r\nx: SECRET\r\n\r\n", json.dumps(body).encode(), stream="S")
    for text in (
        "body.total > 5",
        "body[body.total].x",
        "int(body.total)",
        "headers[headers.x]",
        "body.x",
        "timestamp(body.total)",
        "duration(headers.x)",
        "bool(body.total)",
        "{body.total: 1, headers.x: 2}",
        "''.matches(body.total + '(')",
        "body.SECRET[5]" if False else "body[body.total][7]",
    ):
        with pytest.raises(EvaluationError) as caught:
            compile_expression(text, STREAM_VARIABLES).evaluate(message)
        assert "SECRET" not in str(caught.value)


MARKER = 735_735_735
MARKED: dict[str, Any] = {
    "int": MARKER,
    "uint": Uint(MARKER),
    "double": MARKER + 0.5,
    "bool": True,
    "string": f"x{MARKER}",
    "bytes": b"\xff%d" % MARKER,
    "google.protobuf.Timestamp": Timestamp(MARKER * 10**9),
    "google.protobuf.Duration": Duration(MARKER * 10**9),
    "list": [MARKER, f"x{MARKER}"],
    "map": {MARKER: 1, f"x{MARKER}": MARKER},
}
WRITERS: tuple[Callable[[Any], object], ...] = (
    lambda value: payload_of(value, 5),
    lambda value: header_of(value, 5),
    key_of,
)
CALLS = {overload.id: (function, overload) for function in (*OPERATORS, *FUNCTIONS) for overload in function.overloads}


@pytest.mark.parametrize("overload", CALLS)
def test_no_function_quotes_a_value_of_the_message_in_an_error(overload: str) -> None:
    """With arguments of any types, errors have fixed texts."""
    function, one = CALLS[overload]
    text = written(function.name, one)
    names = "abcd"[: len(one.takes)]
    compiled = compile_expression(text, dict.fromkeys(names, DYN))
    texts: list[str] = []
    for values in itertools.product(MARKED.values(), repeat=min(2, len(names))):
        given = dict(zip(names, (*values, *[MARKER] * 2), strict=False))
        try:
            value = compiled.evaluate(Activation(given))
            for write in WRITERS:
                try:
                    write(value)
                except EvaluationError as error:
                    texts.append(str(error))
        except EvaluationError as error:
            texts.append(f"{error} {error.__cause__!r}")
    assert texts or function.name in ("_==_", "_!=_")  # these accept all values
    assert not [one for one in texts if str(MARKER) in one]


@pytest.mark.parametrize(
    "text", ["m[1]", "body[1]", "body[body.k]", "tokens[5]", "body.x.y", "m[body.k + 1]", "{body.k: 1, body.k: 2}"]
)
def test_errors_do_not_quote_keys_of_the_payload(text: str) -> None:
    values = {"m": {MARKER: 1}, "body": {"k": MARKER, "x": MARKER}, "tokens": ["a"]}
    with pytest.raises(EvaluationError) as caught:
        compile_expression(text, {"m": DYN, "body": DYN, "tokens": DYN}).evaluate(Activation(values))
    assert str(MARKER) not in str(caught.value)


def test_without_re2_matches_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    for text in ("subject.matches('a')", "matches(subject, headers.x)"):
        with pytest.raises(ExpressionError, match=r"matches\(\) needs RE2: pip install google-re2"):
            compile_expression(text, STREAM_VARIABLES)
    assert compile_expression("subject.contains('a')", STREAM_VARIABLES).evaluate(Facts("a", b"", b"")) is True


def test_a_match_is_found_even_if_the_set_runs_out_of_memory() -> None:
    text = "ab" * 3000 + "c" * 20
    pattern = patterns.Pattern("(a|b)*a(a|b){12}c", 30_000)
    assert pattern.found_in(text) is False
    pattern = patterns.Pattern("(a|b)*a(a|b){11}c", 30_000)
    assert pattern.found_in(text) is True
