"""`omit`, `mask` and `sha256`: fields are dropped, hidden or hashed, wherever a sender puts them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_trio.errors import EvaluationError, ExpressionError
from router_trio.expressions.expression import compile_expression
from router_trio.expressions.functions.fields import MASK, MAX_PATH
from router_trio.expressions.language.types import DYN, STRING
from router_trio.expressions.message import STREAM_VARIABLES, Facts
from router_trio.expressions.output import payload_of
from tests.support.drawn import examples
from tests.unit.expressions.activation import Activation

BODY = {
    "id": "7",
    "card": {"number": "4111", "month": 3},
    "cards": [{"number": "1"}, [{"number": "2", "x": 1}], "3", None],
    "a.b": {"c": 1, "d": 2},
    "none": None,
}
SAME = {name: value for name, value in BODY.items() if name != "card"}


def value_of(text: str, body: Any = BODY) -> Any:
    expression = compile_expression(text, STREAM_VARIABLES)
    return expression.evaluate(Facts("a", b"", json.dumps(body).encode()))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("omit(body, 'card.number')", {**SAME, "card": {"month": 3}}),
        ("omit(body, 'card.number', 'card.month')", {**SAME, "card": {}}),
        ("omit(body, 'card', 'card.number')", SAME),
        ("omit(body, 'card.number', 'card')", SAME),
        ("omit(body.card, 'number')", {"month": 3}),
        ("omit(body, 'nowhere', 'id.x', 'card.number.x', 'none.x', 'cards.x.y')", BODY),
        ("omit(body, 'cards.number').cards", [{}, [{"x": 1}], "3", None]),
        ("mask(body, 'cards.number').cards", [{"number": MASK}, [{"number": MASK, "x": 1}], "3", None]),
        ("mask(body, 'cards', 'none', 'id').id", MASK),
        ("mask(body, 'cards', 'none', 'id').cards", MASK),
        ("mask(body, 'cards', 'none', 'id').none", MASK),
        ("omit(body, r'a\\.b.c')['a.b']", {"d": 2}),
        ("omit(body, 'a.b.c')['a.b']", {"c": 1, "d": 2}),
        ("omit(body.cards, 'number')", [{}, [{"x": 1}], "3", None]),
        ("omit({'a': 1, 'b': 2}, 'a')", {"b": 2}),
        ("omit([{'a': 1, 'b': 2}], 'a')", [{"b": 2}]),
        ("omit(body, 'car' + 'd').size()", len(SAME)),
        ("omit(body.card, body.id == '7' ? 'number' : 'month')", {"month": 3}),
        ("body.cards.map(c, type(c) == map, omit(c, 'number'))", [{}]),
        ("omit({1: 'a', true: 'b'}, '1', 'true').size()", 2),
    ],
)
def test_fields_are_dropped_or_masked(text: str, value: Any) -> None:
    assert value_of(text) == value


def test_the_message_itself_stays_as_it_is() -> None:
    value = value_of("[omit(body, 'card.number', 'cards.number'), mask(body, 'id'), body]")
    assert value[2] == BODY


@pytest.mark.parametrize("function", ["omit", "mask"])
@pytest.mark.parametrize("body", ["text", 5, 1.5, True, None])
def test_a_value_without_fields_is_refused(function: str, body: Any) -> None:
    with pytest.raises(EvaluationError, match=rf"^{function} can't be applied to \w+$"):
        value_of(f"{function}(body, 'card')", body)


def test_a_value_that_is_nested_too_deeply_is_refused() -> None:
    body: Any = {"number": 1}
    for _ in range(150):
        body = [body]
    with pytest.raises(EvaluationError, match="nested more than 100 levels deep"):
        value_of("omit(body, 'number')", body)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("omit(body, 'a..b')", "line 1, column 12: a path is the names of keys, separated by single dots"),
        ("omit(body, '')", "line 1, column 12: a path is the names of keys, separated by single dots"),
        ("mask(body, 'a', '.b')", "line 1, column 17: a path is the names of keys, separated by single dots"),
        (f"omit(body, '{'a' * (MAX_PATH + 1)}')", "a path is longer than 512 characters"),
        ("omit(body)", r"omit can't be called with dyn: use omit\(map\(A, B\), string, ...\)"),
        ("omit(body, 'a', 5)", "omit can't be called with dyn, string, int"),
        ("omit(subject, 'a')", "omit can't be called with string, string"),
        ("body.omit('a')", r"write omit\(body, 'a'\)"),
        ("body.without('a.b')", r"write omit\(body, 'a.b'\)"),
        ("body.redact('a.b')", r"write mask\(body, 'a.b'\)"),
        ("md5(body.id)", r"write sha256\(body.id\)"),
        ("sha256(5)", r"sha256 can't be called with int: use sha256\(string\), sha256\(bytes\)"),
    ],
)
def test_a_wrong_call_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        compile_expression(text, STREAM_VARIABLES)


@pytest.mark.parametrize("path", ["", ".", "a..b", "a" * (MAX_PATH + 1)])
def test_an_invalid_path_of_a_message_fails_the_message(path: str) -> None:
    with pytest.raises(EvaluationError, match="a path is"):
        value_of("omit(body, body.path)", {"path": path})
    with pytest.raises(EvaluationError, match="omit can't be applied to map and int"):
        value_of("omit(body, 'a', body.path)", {"path": 5})


NAMES = ["a", "b", "c", "a.b", "\\", "a\\"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=20,
)
PATHS = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), min_size=1, max_size=3)


def fields_of(value: Any, path: tuple[str, ...] = (), at: tuple[Any, ...] = ()) -> Any:
    """Yield each part that is no map or list, and each empty one: its path of names, its place, its value."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from fields_of(one, (*path, name), (*at, name))
    elif isinstance(value, list) and value:
        for index, one in enumerate(value):
            yield from fields_of(one, path, (*at, index))
    else:
        yield path, at, value


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4) | st.lists(VALUES, max_size=3), PATHS)
@settings(max_examples=examples(500), deadline=None)
def test_nothing_below_a_path_remains_and_all_else_does(body: Any, paths: list[list[str]]) -> None:
    texts = [".".join(name.replace("\\", "\\\\").replace(".", "\\.") for name in names) for names in paths]
    called = ", ".join(["b", *(f"p{index}" for index in range(len(texts)))])
    variables = {"b": DYN, **{f"p{index}": STRING for index in range(len(texts))}}
    given_values = {"b": body, **{f"p{index}": text for index, text in enumerate(texts)}}

    def applied(function: str) -> Any:
        return compile_expression(f"{function}({called})", variables).evaluate(Activation(given_values))

    def is_below(path: tuple[str, ...]) -> bool:
        return any(path[: len(names)] == tuple(names) for names in paths)

    kept = {at: value for path, at, value in fields_of(body) if not is_below(path)}
    omitted, masked = applied("omit"), applied("mask")
    assert not [path for path, _, _ in fields_of(omitted) if is_below(path)]
    assert all(value == MASK for path, _, value in fields_of(masked) if is_below(path))
    left = {at: value for _, at, value in fields_of(omitted)}
    assert kept.items() <= left.items()
    assert all(value in ({}, []) for at, value in left.items() if at not in kept)
    assert {at: value for path, at, value in fields_of(masked) if not is_below(path)} == kept


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("sha256('')", b""),
        ("sha256('é€')", "é€".encode()),
        ("sha256(b'\\xff')", b"\xff"),
        ("sha256(body.id)", b"7"),
        ("sha256(payload)", json.dumps(BODY).encode()),
        ("sha256(string(size) + 'salt')", f"{len(json.dumps(BODY))}salt".encode()),
    ],
)
def test_sha256_is_the_digest_in_hexadecimal(text: str, data: bytes) -> None:
    assert value_of(text) == hashlib.sha256(data).hexdigest()


def test_sha256_of_another_type_fails() -> None:
    with pytest.raises(EvaluationError, match="sha256 can't be applied to int"):
        value_of("sha256(body.card.month)")


def test_a_large_body_that_is_masked_stays_within_the_budget() -> None:
    body = {"items": [{"card": {"number": str(number)}, "sku": number} for number in range(2_000)]}
    value = value_of("mask(body, 'items.card.number')", body)
    assert payload_of(value, 1024**2).count(b'"number":"****"') == 2_000
