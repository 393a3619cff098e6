"""A schema file that can't be used is refused with the place of its fault and the cure."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from router_trio.schemas import reading
from router_trio.schemas.compiler import DRAFT_7, DRAFT_2020
from router_trio.schemas.schema import Schema

TYPES = "must be one of array, boolean, integer, null, number, object, string, or a list of these"
LOOKAROUND = "write it without lookaround and backreferences, whose time has no bound"

FAULTS: list[tuple[Any, str]] = [
    (b"", "is not JSON at line 1, column 1 (Expecting value); correct it"),
    (b'{\n  "type": "object",\n}', "is not JSON at line 3, column 1 "),
    (b"\xff", "is not UTF-8; save it as UTF-8"),
    (b"[]", 'is not a JSON object; write a schema, such as {"type": "object"}'),
    (b'{"type": "object", "type": "array"}', "has the key 'type' twice in one object; remove one of them"),
    (b'{"minimum": NaN}', "contains NaN, which is not JSON; write a number"),
    (b'{"not":' * 60 + b"{}" + b"}" * 60, "is nested more than 50 levels deep; move parts into $defs"),
    (b'{"not":' * 45 + b"{}" + b"}" * 45, "is nested more than 50 levels deep; move parts into $defs"),
    (b'{"not":' * 10_000, "is nested more than 50 levels deep; move parts into $defs"),
    (b" " * (reading.MAX_FILE + 1), "has more than 256 KiB; divide it among routes"),
    ({"$defs": {str(i): {} for i in range(2000)}}, "has more than 2000 schemas; divide it among routes"),
    ({"type": "objekt"}, f"at #/type: {TYPES}: did you mean 'object'?; correct it"),
    ({"items": {"type": ["string", "nul"]}}, f"at #/items/type/1: {TYPES}: did you mean 'null'?; correct it"),
    ({"type": 5}, f"at #/type: {TYPES}; correct it"),
    ({"required": ["a", "a"]}, "at #/required: has an element twice; correct it"),
    ({"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(1900)} | {"1900": {}}},
     "has too many nested references; simplify it"),
    ({"properties": {"a/b": {"minLength": -1}}}, "at #/properties/a~1b/minLength: must be at least 0; correct it"),
    ({"required": "id"}, "at #/required: must be of type array, not a string; correct it"),
    ({"$schema": f"{DRAFT_7}#", "items": {"not": {"multipleOf": 0}}}, "at #/items/not/multipleOf: must be more than 0"),
    ({"$schema": "http://json-schema.org/draft-04/schema#"}, "at #/$schema: is not a draft that is known here; write "),
    ({"$defs": {"a": {"$schema": f"{DRAFT_7}#"}}}, "at #/$defs/a/$schema: is another draft than that of the file"),
    ({"pattern": "(?=a)"}, f"at #/pattern: RE2 can't read the pattern (invalid perl operator: (?=); {LOOKAROUND}"),
    ({"items": {"pattern": r"(a)\1"}}, r"at #/items/pattern: RE2 can't read the pattern (invalid escape sequence: \1)"),
    ({"pattern": r"[\pL]{900}"}, "at #/pattern: RE2 can't read the pattern (pattern too large - compile failed)"),
    ({"patternProperties": {"(": {}}}, "at #/patternProperties/(: RE2 can't read the pattern (missing ): ()"),
    ({"$ref": "#/$defs/order"}, "at #/$ref: '#/$defs/order' leads nowhere in this file; correct the reference"),
    ({"$ref": "#order"}, "at #/$ref: '#order' leads nowhere in this file; correct the reference"),
    ({"x": 5, "$ref": "#/x"}, "at #/$ref: '#/x' is not a schema; correct the reference"),
    ({"title": "x", "$ref": "#/title/x"}, "at #/$ref: '#/title/x' leads nowhere in this file; correct the reference"),
    ({"x": 5, "$ref": "#/x/y"}, "at #/$ref: '#/x/y' leads nowhere in this file; correct the reference"),
    ({"allOf": [True], "$ref": "#/allOf/x"}, "at #/$ref: '#/allOf/x' leads nowhere in this file; correct the"),
    ({"$id": "http://x/", "$ref": "//["}, "at #/$ref: '//[' is not in this file, and nothing is fetched; copy that"),
    ({"enum": [{"type": "strong"}], "$ref": "#/enum/0"}, f"at #/enum/0/type: {TYPES}: did you mean 'string'?; corr"),
    ({"x": {"items": {"pattern": "("}}, "not": {"$ref": "#/x"}}, "at #/x/items/pattern: RE2 can't read the pattern ("),
    ({"x": {"$ref": "#/y"}, "y": {"$ref": "http://y/"}, "not": {"$ref": "#/x"}}, "at #/y/$ref: 'http://y/' is not in"),
    ({"x": {"not": {"$ref": "#/x"}}, "$ref": "#/x"}, "at #/x: refers to itself for the same value, without end;"),
    ({"y": {"$defs": {str(i): {} for i in range(2000)}}, "not": {"$ref": "#/y"}}, "has more than 2000 schemas; "),
    ({"$id": "http://x/", "items": {"$id": "http://[x"}}, "at #/items/$id: is not a URI (Invalid IPv6 URL); correct"),
    (b'{"items": {"multipleOf": 1e400}}', "at #/items/multipleOf: is too large for a double; correct it"),
    (b'{"enum": [["\\ud800"]]}', "contains \\ud800, half of a surrogate pair, which no body has; remove it"),
    (b'{"$id": "\\udfff"}', "contains \\udfff, half of a surrogate pair, which no body has; remove it"),
    ({"$ref": "#"}, "at #: refers to itself for the same value, without end; remove the reference"),
    ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"not": {"$ref": "#"}}]}}}, "refers to itself"),
    ({"dependentSchemas": {"a": {"if": {"$ref": "#"}}}}, "refers to itself for the same value, without end"),
]  # fmt: skip
REMOTE = [
    "https://example.com/order.json",
    "order.json",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x#/$defs/a",
    "urn:example:order",
    "//example.com/order",
]


def content(schema: Any) -> bytes:
    return schema if isinstance(schema, bytes) else json.dumps(schema).encode()


@pytest.mark.parametrize(("schema", "text"), FAULTS, ids=[text for _, text in FAULTS])
def test_a_fault_is_reported_with_its_place_and_its_cure(schema: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"; |: ") as caught:
        Schema(content(schema))
    assert text in str(caught.value)


@pytest.mark.parametrize("reference", REMOTE)
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_a_reference_to_another_document_is_refused_by_its_name(reference: str, keyword: str) -> None:
    with pytest.raises(
        ValueError, match="is not in this file, and nothing is fetched; copy that schema into"
    ) as caught:
        Schema(content({"properties": {"a": {keyword: reference}}}))
    assert str(caught.value).startswith(f"at #/properties/a/{keyword}: {reference!r} ")


@pytest.mark.parametrize(
    ("schema", "fits", "misfit"),
    [
        (True, 5, None),
        ({}, 5, None),
        ({"$schema": f"{DRAFT_7}#", "$ref": "#/definitions/a", "definitions": {"a": {"const": 1}}}, 1.0, True),
        ({"$id": "https://x/y.json", "$ref": "y.json#/$defs/a", "$defs": {"a": {"type": "null"}}}, None, 0),
        ({"$ref": "#here", "$defs": {"a": {"$anchor": "here", "enum": ["a", 0]}}}, 0, False),
        ({"items": {"$ref": "#"}, "type": "array"}, [[], [[]]], [[], [5]]),
        ({"const": 2**70}, 2**70 + 1, 2**63),
        ({"pattern": r"^\u00e9\\u0041$"}, "é\\u0041", "éA"),
        ({"pattern": r"^\d{2}$"}, "12", "12\n"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, {"type": "object"}, {"type": "objekt"}),
    ],
)
def test_a_schema_with_this_is_read(schema: Any, fits: Any, misfit: Any) -> None:
    from router_trio.expressions.body import decode

    read = Schema(b"\xef\xbb\xbf" + content(schema))
    assert read.miss(decode(json.dumps(fits).encode())) is None
    if schema not in (True, {}):
        assert read.miss(decode(json.dumps(misfit).encode())) is not None


@pytest.mark.parametrize(
    ("schema", "warnings"),
    [
        ({"properties": {"requird": {"type": "null"}}, "x-owner": "billing", "additionalProperties": False}, []),
        ({"requird": ["id"]}, ["at #: 'requird' is no keyword, so it has no effect; did you mean 'required'?"]),
        ({"items": {"maxLenght": 5}},
         ["at #/items: 'maxLenght' is no keyword, so it has no effect; did you mean 'maxLength'?"]),
        ({"additionalItems": False},
         ["at #: 'additionalItems' is a keyword of the other draft, with no effect in this one; replace it"]),
        ({"$schema": f"{DRAFT_7}#", "items": {"$ref": "#/definitions/a", "title": "a", "minimum": 1},
          "definitions": {"a": True}},
         ["at #/items: 'minimum' has no effect beside $ref in draft 7; put both into allOf"]),
        ({"$schema": f"{DRAFT_7}#", "dependencies": {}, "additionalItems": False, "prefixItems": []},
         ["at #: 'prefixItems' is a keyword of the other draft, with no effect in this one; replace it"]),
    ],
)  # fmt: skip
def test_a_key_that_looks_like_a_keyword_and_has_no_effect_is_a_warning(schema: Any, warnings: list[str]) -> None:
    assert list(Schema(content(schema)).warnings) == warnings


def test_every_keyword_of_the_meta_schemas_is_known() -> None:
    from jsonschema_specifications import REGISTRY

    for uri in REGISTRY:
        for draft, own in ((DRAFT_7, reading._OF_7), (DRAFT_2020, reading._OF_2020)):
            if uri == draft or uri.startswith(draft.removesuffix("schema") + "meta/"):
                found = REGISTRY.contents(uri).get("properties", {}).keys()
                older = (
                    {"$recursiveAnchor", "$recursiveRef", "dependencies", "definitions"}
                    if own is reading._OF_2020
                    else set()
                )
                assert found - older <= reading._OF_BOTH | own, uri


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(600)} | {"600": {}}},
        {"enum": [[str(i)] for i in range(20_000)]},
        {"properties": {str(i): {"pattern": f"[a-z]{{{i % 500}}}"} for i in range(1900)}},
        {"anyOf": [{"oneOf": [{"not": {"type": "string"}}] * 30}] * 30},
    ],
    ids=["doubling", "enum", "patterns", "anyOf"],
)
def test_the_most_expensive_file_is_read_in_bounded_time(schema: Any) -> None:
    began = time.process_time()
    read = Schema(content(schema)[: reading.MAX_FILE])
    read.miss({"0": "a"})
    assert time.process_time() - began < 5
