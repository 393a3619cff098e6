"""A schema judges bodies: it reports path and rule, never content, and no body takes long."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_trio.errors import BodyError
from router_trio.expressions.body import decode
from router_trio.expressions.message import Facts
from router_trio.expressions.values import Budget
from router_trio.schemas.compiler import DRAFT_7
from router_trio.schemas.schema import TOO_DEEP, TOO_MUCH, Schema
from tests.support.drawn import examples

ORDER = {
    "type": "object",
    "required": ["id", "items"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$", "maxLength": 9},
        "total": {"minimum": 0, "multipleOf": 0.01},
        "card": {"oneOf": [{"type": "null"}, {"type": "object", "required": ["number"]}]},
        "items": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"$ref": "#/$defs/item"}},
        "labels": {"additionalProperties": {"type": "string"}, "propertyNames": {"maxLength": 5}},
    },
    "additionalProperties": False,
    "$defs": {
        "item": {"properties": {"sku": {"enum": ["a", "b"]}, "count": {"exclusiveMinimum": 0, "type": "integer"}}}
    },
}
GOOD: dict[str, Any] = {"id": "7", "items": [{"sku": "a", "count": 1}]}


def schema_of(schema: Any) -> Schema:
    return Schema(json.dumps(schema).encode())


def miss(schema: Any, body: Any) -> str | None:
    return schema_of(schema).miss(body)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, None),
        ({"total": 0.29, "card": None, "labels": {"a": "b"}}, None),
        ({"id": 7}, "/id must be of type string, not an integer (#/properties/id/type)"),
        ({"id": "x"}, "/id must match the pattern '^[0-9]+$' (#/properties/id/pattern)"),
        ({"id": "1" * 10}, "/id must have at most 9 characters (#/properties/id/maxLength)"),
        ({"total": -1}, "/total must be at least 0 (#/properties/total/minimum)"),
        ({"total": 0.291}, "/total must be a multiple of 0.01 (#/properties/total/multipleOf)"),
        ({"total": float("inf")}, "/total must be a multiple of 0.01 (#/properties/total/multipleOf)"),
        ({"card": {}}, "/card fits no schema of oneOf (#/properties/card/oneOf)"),
        ({"items": []}, "/items must have at least 1 elements (#/properties/items/minItems)"),
        ({"items": [{}, {"a": 1}, {"a": 1.0}]}, "/items has an element twice (#/properties/items/uniqueItems)"),
        ({"items": [{}, {"sku": "c"}]},
         "/items/1/sku must be one of the values of enum (#/$defs/item/properties/sku/enum)"),
        ({"items": [{"count": 0}]},
         "/items/0/count must be more than 0 (#/$defs/item/properties/count/exclusiveMinimum)"),
        ({"s3cr3t": 1}, "the body has a field that the schema does not name (#/additionalProperties)"),
        ({"labels": {"s3c": 1}}, "/labels/* must be of type string, not an integer "
         "(#/properties/labels/additionalProperties/type)"),
        ({"labels": {"s3cr3t": "a"}},
         "/labels/* must have at most 5 characters (#/properties/labels/propertyNames/maxLength)"),
    ],
)  # fmt: skip
def test_a_miss_has_the_path_and_the_rule(changes: dict[str, Any], text: str | None) -> None:
    assert miss(ORDER, GOOD | changes) == text


def test_a_missing_field_is_named_by_the_schema() -> None:
    assert miss(ORDER, {"id": "1"}) == "the body lacks 'items' (#/required)"
    assert miss({"dependentRequired": {"a": ["b"]}}, {"a": 1}) == "the body lacks 'b' (#/dependentRequired)"


def test_of_several_schemas_the_one_that_fits_best_is_reported() -> None:
    either = {"anyOf": [{"type": "null"}, {"properties": {"a": {"properties": {"b": {"const": 1}}}}}]}
    assert miss(either, {"a": {"b": 2}}) == (
        "/a/b must be the value of const (#/anyOf/1/properties/a/properties/b/const)"
    )


def test_long_paths_are_cut() -> None:
    name = "n" * 500
    text = miss({"properties": {name: {"type": "null"}}}, {name: 1})
    assert text is not None
    assert len(text) < 400


@pytest.mark.parametrize("payload", [b"", b"{", b'{"id": NaN}', b"\xff", b"[" * 5000])
def test_a_body_that_is_no_json_does_not_fit(payload: bytes) -> None:
    with pytest.raises(BodyError) as caught:
        schema_of({}).require(Facts("a", b"", payload))
    assert caught.value.reason == "schema"


def test_duplicate_keys_and_large_numbers_are_judged_as_bodies_are_decoded() -> None:
    schema = schema_of({"properties": {"a": {"type": "integer", "maximum": 2**53}, "b": {"const": 2**64}}})
    schema.require(Facts("a", b"", b'{"a": "x", "a": 1}'))  # the last one counts
    for payload in (b'{"a": 1, "a": "x"}', b'{"a": 9007199254740993}', b'{"a": 1e999}'):
        with pytest.raises(BodyError):
            schema.require(Facts("a", b"", payload))
    schema.require(Facts("a", b"", b'{"b": 18446744073709551617, "a": 3.0}'))  # doubles, and the same one


# --- nothing of a body is in a text ---

MARK = "s3cr3t"
NAMES = st.sampled_from(["id", "total", "card", "items", "labels", "sku", "count", "number", f"key-{MARK}"])
MARKED = st.recursive(
    st.sampled_from([f"x{MARK}", 735735735, 735735.735, True, None, "7", 1, 0.25, -735735735, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
SCHEMAS = [
    ORDER,
    {"patternProperties": {"^key": {"type": "null"}}, "unevaluatedProperties": {"type": "array"}},
    {"propertyNames": {"pattern": "^[a-z]+$"}, "not": {"required": ["id"]}},
    {"prefixItems": [{"const": 1}], "items": {"type": "object", "maxProperties": 1}, "contains": {"enum": [1, "7"]}},
    {"if": {"type": "object"}, "then": {"dependentSchemas": {"id": {"minProperties": 3}}}, "else": {"oneOf": [
        {"type": "string", "minLength": 2}, {"type": "number", "maximum": 3}]}},
    {"anyOf": [{"properties": {"card": {"$ref": "#"}}, "required": ["card"]}, {"type": ["integer", "null"]}]},
    {"additionalProperties": {"additionalProperties": {"type": "string", "pattern": "^a*$"}},
     "unevaluatedItems": False},
    {"$schema": f"{DRAFT_7}#", "items": [{"type": "string"}], "additionalItems": False, "dependencies": {"id": ["x"]}},
]  # fmt: skip


@given(st.sampled_from(SCHEMAS), MARKED)
@settings(max_examples=examples(600), deadline=None)
def test_no_text_has_a_value_or_a_key_of_the_body(schema: dict[str, Any], body: Any) -> None:
    found = str(miss(schema, body))
    assert MARK not in found
    assert "735735" not in found


@pytest.mark.slow
@given(st.sampled_from(SCHEMAS), MARKED)
@settings(max_examples=examples(300), deadline=None)
def test_bodies_fit_as_the_library_jsonschema_finds(schema: dict[str, Any], body: Any) -> None:
    import jsonschema

    kind = jsonschema.Draft7Validator if "$schema" in schema else jsonschema.Draft202012Validator
    assert (miss(schema, body) is None) is kind(schema).is_valid(body)


# --- no body takes long ---

LONGEST = 1.0
"""Maximum seconds of processor time in these tests: many times what an idle machine needs."""


def nested(depth: int, inner: Any, wrap: Callable[[Any], Any]) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


TREE = {"oneOf": [{"const": 0}, {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},
                  {"properties": {"a": {"$ref": "#"}}, "minProperties": 1}]}  # fmt: skip
DOUBLING = {"$ref": "#/$defs/0", "$defs": {
    str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}, {"$ref": f"#/$defs/{i + 1}"}]} for i in range(40)
} | {"40": {"type": "object"}}}  # fmt: skip
BACKTRACKING = {"type": "object", "propertyNames": {"pattern": "^(a+)+$"}, "patternProperties": {"(a|aa)+$": {}},
                "properties": {"a": {"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
                               "b": {"pattern": "(x+x+)+y"}}}  # fmt: skip
COLLIDING = [[2.0 ** (61 * (i % 16)) * (1 + i // 16)] for i in range(8_000)]

HOSTILE: dict[str, tuple[Any, Any, str | None]] = {
    "catastrophic patterns": (BACKTRACKING, {"a": "a" * 60_000 + "!", "b": "x" * 60_000}, "/a must match"),
    "a catastrophic key": (BACKTRACKING, {"a" * 60_000 + "!": 1}, "/* must match"),
    "many keys and patterns": (
        {"patternProperties": {f"(a|b)*{i}$": {} for i in range(100)}}, {f"{'ab' * 20}{i}": 1 for i in range(20_000)},
        TOO_MUCH,
    ),
    "branches in each level": (TREE, nested(50, 1, lambda inner: {"a": inner}), TOO_MUCH),
    "references that double": (DOUBLING, {}, TOO_MUCH),
    "deep recursion": (
        {"properties": {"a": {"$ref": "#"}}}, nested(400, {}, lambda inner: {"a": inner}), TOO_DEEP,
    ),
    "a deep constant": ({"const": 1}, nested(900, [], lambda inner: [inner]), TOO_DEEP),
    "many unique numbers": ({"uniqueItems": True}, list(range(60_000)), None),
    "unique objects": ({"uniqueItems": True}, [{"a": i} for i in range(100_000)], TOO_MUCH),
    "lists with one hash": ({"uniqueItems": True}, COLLIDING, None),
    "a large enum": ({"items": {"enum": list(range(9_000))}}, [8_999] * 20_000, None),
    "large objects in a large enum": (
        {"items": {"enum": [{"a": i} for i in range(5_000)]}}, [{"a": [0] * 100}] * 20_000, "/0 must be one of",
    ),
    "many elements": ({"items": {"type": "object"}}, [{}] * 200_000, TOO_MUCH),
    "unevaluated elements": ({"contains": {"const": 1}, "unevaluatedItems": {"const": 2}}, [1, 2] * 100_000, TOO_MUCH),
    "unevaluated fields": (
        {"anyOf": [{"properties": {"a": {}}}] * 50, "unevaluatedProperties": False}, {str(i): 1 for i in range(50_000)},
        "the body has a field that no schema allows",
    ),
    "many names": ({"required": [str(i) for i in range(8_000)]}, {str(i): 1 for i in range(8_000)}, None),
    "many dependencies": (
        {"items": {"dependentRequired": {str(i): ["a"] for i in range(8_000)}}}, [{}] * 60_000, TOO_MUCH,
    ),
    "many dependencies in draft 7": (
        {"$schema": f"{DRAFT_7}#", "items": {"dependencies": {str(i): ["a"] for i in range(8_000)}}}, [{}] * 60_000,
        TOO_MUCH,
    ),
    "names that many names depend on": (
        {"items": {"dependentRequired": {str(i): [f"n{j}" for j in range(400)] for i in range(80)}}},
        [{f"{i}" if i < 80 else f"n{i - 80}": 1 for i in range(480)}] * 400, TOO_MUCH,
    ),
    "many schemas that nothing fits": ({"items": {"anyOf": [False] * 1_900 + [True]}}, [1] * 60_000, TOO_MUCH),
    "one of many schemas": ({"items": {"oneOf": [False] * 1_900 + [True]}}, [1] * 60_000, TOO_MUCH),
    "many schemas that all elements fit": (
        {"allOf": [{"contains": True, "maxContains": 10**9}] * 900}, [1] * 200_000, TOO_MUCH,
    ),
    "references to many first elements": (
        {"items": {"allOf": [{"$ref": "#/$defs/a"}] * 900},
         "$defs": {"a": {"prefixItems": [*([True] * 900), {"type": "null"}]}}}, [[1] * 900] * 100, TOO_MUCH,
    ),
    "a text that is made for its pattern": (
        {"pattern": "a.{300}z"}, "".join(Random(1).choices("ab", k=200_000)), TOO_MUCH,
    ),
    "decimals": ({"items": {"multipleOf": 1e-300}}, [1.7e308] * 100_000, TOO_MUCH),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_takes_bounded_time(name: str) -> None:
    schema, body, text = HOSTILE[name]
    compiled = schema_of(schema)
    began = time.process_time()
    found = compiled.miss(body)
    assert time.process_time() - began < LONGEST
    assert found is None if text is None else str(found).startswith(text)


def test_an_ordinary_large_body_is_within_the_budget() -> None:
    body = GOOD | {"items": [{"sku": "a", "count": number} for number in range(1, 3001)]}
    payload = json.dumps(body).encode()
    assert schema_of(ORDER).miss(decode(payload, Budget())) is None


def test_a_schema_can_judge_bodies_of_several_threads_and_after_a_failure() -> None:
    schema = schema_of({"properties": {"a": {"$ref": "#"}}})
    for _ in range(3):
        assert schema.miss(nested(400, {}, lambda inner: {"a": inner})) == TOO_DEEP
        assert schema.miss(nested(40, {}, lambda inner: {"a": inner})) is None
