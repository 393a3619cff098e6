"""Read a schema file and check it, so that every fault of a schema is found before the first message.

Each fault is a ValueError whose text has the JSON pointer of the place in the file and the cure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from graphlib import CycleError, TopologicalSorter
from math import inf
from typing import Any
from urllib.parse import urlsplit

from jsonschema_specifications import REGISTRY
from referencing.jsonschema import DRAFT7, DRAFT202012

from router_trio.errors.quotes import excerpt, quoted
from router_trio.expressions.functions.patterns import BadPattern
from router_trio.expressions.values import MAX_INT, MIN_INT, Budget
from router_trio.schemas.compiler import DRAFT_7, DRAFT_2020, IN_PLACE, Compiler, pattern_of
from router_trio.schemas.keywords import TYPES, Check
from router_trio.schemas.misses import Miss, Run, escaped
from router_trio.schemas.references import Document, UnresolvedError, references_of
from router_trio.schemas.values import TooDeepError

MAX_FILE = 256 * 1024
"""Maximum size of a schema file in bytes."""
MAX_SCHEMA_NESTING = 50
"""Maximum nesting of lists and objects in a schema file."""
MAX_SCHEMAS = 2_000
"""Maximum number of schemas in a file, including those within other schemas."""

_DIGITS_OF_INTS = 400


def read(content: bytes) -> tuple[Document, str]:
    """Return the checked document of a schema file, and its draft. Raises ValueError for the first fault."""
    contents = _parsed(content)
    draft = _draft(contents)
    _check_against_draft(contents, draft)
    try:
        document = Document(contents, DRAFT7 if draft == DRAFT_7 else DRAFT202012)
    except ValueError as error:
        raise _fault(_place_of_bad_id(contents, "#") or "#", f"is not a URI ({error}); correct it") from None
    checked = 0
    while checked < len(document.subschemas):  # a reference may lead to further ones
        if len(document.subschemas) > MAX_SCHEMAS:
            raise ValueError(f"has more than {MAX_SCHEMAS} schemas; divide it among routes")
        schema, resolver = document.subschemas[checked]
        checked += 1
        if isinstance(schema, dict):
            pointer = document.pointer(schema, "#")
            _check_dialect(schema, draft, pointer)
            _check_patterns(schema, pointer)
            if schema.get("multipleOf") == inf:
                raise _fault(f"{pointer}/multipleOf", "is too large for a double; correct it")
        for target, there in _targets(document, schema, resolver):
            if document.is_new(target):
                _check_against_draft(target, draft, document.pointer(target, "#"))
                document.add(target, there)
    graph = {id(schema): set(_in_place(document, schema, resolver)) for schema, resolver in document.subschemas}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        there = next(one for one, _ in document.subschemas if id(one) == error.args[1][0])
        pointer = document.pointer(there, "#")
        raise _fault(pointer, "refers to itself for the same value, without end; remove the reference") from None
    return document, draft


def _fault(pointer: str, text: str) -> ValueError:
    return ValueError(f"at {excerpt(pointer)}: {text}")


def _place_of_bad_id(contents: Any, pointer: str) -> str:
    """Return the pointer of the first `$id` that is not a URI, `""` if there is none."""
    if isinstance(contents, dict) and isinstance(contents.get("$id"), str):
        try:
            urlsplit(contents["$id"])
        except ValueError:
            return f"{pointer}/$id"
    items = (
        contents.items() if isinstance(contents, dict) else enumerate(contents if isinstance(contents, list) else ())
    )
    found = (_place_of_bad_id(one, f"{pointer}/{escaped(str(key))}") for key, one in items)
    return next((one for one in found if one), "")


# --- JSON ---


def _parsed(content: bytes) -> Any:
    if len(content) > MAX_FILE:
        raise ValueError(f"has more than {MAX_FILE // 1024} KiB; divide it among routes")
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8; save it as UTF-8") from None
    try:
        contents = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_number)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not JSON at {at} ({error.msg}); correct it") from None
    except RecursionError:
        raise _too_deep() from None
    if _depth(contents) > MAX_SCHEMA_NESTING:
        raise _too_deep()
    try:
        json.dumps(contents, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        escape = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"contains {escape}, half of a surrogate pair, which no body has; remove it") from None
    if not isinstance(contents, dict | bool):
        raise ValueError('is not a JSON object; write a schema, such as {"type": "object"}')
    return contents


def _too_deep() -> ValueError:
    return ValueError(f"is nested more than {MAX_SCHEMA_NESTING} levels deep; move parts into $defs")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the key {quoted(twice)} twice in one object; remove one of them")
    return fields


def _no_constant(constant: str) -> Any:
    raise ValueError(f"contains {constant}, which is not JSON; write a number")


def _number(text: str) -> float:
    """Return an int if it fits into 64 bits, else a double, as for numbers in bodies."""
    if len(text) > _DIGITS_OF_INTS:
        return float(text)
    number = int(text)
    return number if MIN_INT <= number <= MAX_INT else float(text)


def _depth(contents: Any) -> int:
    depth, level = 0, [contents]
    while level:
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
        depth += 1
        level = below
    return depth - 1


# --- the rules of the draft ---


def _draft(contents: Any) -> str:
    named = contents.get("$schema", DRAFT_2020) if isinstance(contents, dict) else DRAFT_2020
    draft = named.rstrip("#") if isinstance(named, str) else ""
    if draft in (DRAFT_7, DRAFT_2020):
        return draft
    raise _fault("#/$schema", f"is not a draft that is known here; write {DRAFT_2020!r}, or {DRAFT_7 + '#'!r}")


def _check_dialect(schema: dict[str, Any], draft: str, pointer: str) -> None:
    if str(schema.get("$schema", draft)).rstrip("#") != draft:
        raise _fault(f"{pointer}/$schema", "is another draft than that of the file; keep one of them")


@cache
def _meta_schema(draft: str) -> tuple[Check | None, int, Document]:
    """Return the check of the meta-schema of a draft, its root, and its document, which has to stay alive."""
    contents = REGISTRY.contents(draft)
    document = Document(contents, DRAFT7 if draft == DRAFT_7 else DRAFT202012)
    return Compiler(document, draft).root(), id(contents), document


def _check_against_draft(contents: Any, draft: str, pointer: str = "#") -> None:
    """Raise ValueError if the meta-schema of the draft does not allow the schema at this pointer."""
    check, root, _ = _meta_schema(draft)
    assert check is not None
    try:
        miss = check(contents, Run(Budget(10**9), root, shows_names=True), None)
    except TooDeepError:
        raise _too_deep() from None
    if miss is None:
        return
    text = miss.rule.text
    if miss.path[:1] == ["type"] or miss.path[1:2] == ["type"]:
        text = f"must be one of {', '.join(TYPES)}, or a list of these{_near(contents, miss)}"
    raise _fault(f"{pointer}{miss.pointer}", f"{text}; correct it")


def _near(contents: Any, miss: Miss) -> str:
    """Return `: did you mean 'string'?` for the misspelt name of a type, else `""`."""
    for part in reversed(miss.path):
        contents = contents[part]
    near = get_close_matches(contents, TYPES, n=1) if isinstance(contents, str) else []
    return f": did you mean {near[0]!r}?" if near else ""


def _check_patterns(schema: dict[str, Any], pointer: str) -> None:
    patterns = [(f"{pointer}/patternProperties/{escaped(one)}", one) for one in schema.get("patternProperties", ())]
    if isinstance(schema.get("pattern"), str):
        patterns.append((f"{pointer}/pattern", schema["pattern"]))
    for where, text in patterns:
        try:
            pattern_of(text)
        except BadPattern as error:
            cure = "write it without lookaround and backreferences, whose time has no bound"
            raise _fault(where, f"RE2 can't read the pattern ({excerpt(str(error))}); {cure}") from None


_OF_BOTH = frozenset({
    "$schema", "$id", "$ref", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
    "readOnly", "writeOnly", "format", "contentEncoding", "contentMediaType", "type", "enum", "const", "multipleOf",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", "minItems",
    "maxItems", "uniqueItems", "contains", "items", "minProperties", "maxProperties", "required", "properties",
    "patternProperties", "additionalProperties", "propertyNames", "allOf", "anyOf", "oneOf", "not", "if", "then",
    "else",
})  # fmt: skip
_OF_7 = frozenset({"additionalItems", "dependencies"})
_OF_2020 = frozenset({
    "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "prefixItems", "unevaluatedItems",
    "unevaluatedProperties", "minContains", "maxContains", "dependentRequired", "dependentSchemas", "contentSchema",
    "deprecated",
})  # fmt: skip
_NOTES = frozenset({
    "$schema", "$id", "$ref", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
})  # fmt: skip
"""Keys that check nothing, so that they may stand beside `$ref` in draft 7."""
_SIMILAR = 0.8


def without_effect(document: Document, draft: str) -> Iterator[str]:
    """Yield a text for each key that has no effect: it is misspelt, of the other draft, or beside `$ref` in draft 7."""
    own, other = (_OF_7, _OF_2020) if draft == DRAFT_7 else (_OF_2020, _OF_7)
    known = [*_OF_BOTH, *own]
    for schema, _ in document.subschemas:
        for key in schema if isinstance(schema, dict) else ():
            if draft == DRAFT_7 and "$ref" in schema and key in _OF_BOTH | _OF_7 and key not in _NOTES:
                pointer = excerpt(document.pointer(schema, "#"))
                yield f"at {pointer}: {key!r} has no effect beside $ref in draft 7; put both into allOf"
            if key in _OF_BOTH or key in own:
                continue
            pointer = excerpt(document.pointer(schema, "#"))
            if key in other:
                yield f"at {pointer}: {key!r} is a keyword of the other draft, with no effect in this one; replace it"
            elif near := get_close_matches(key, known, n=1, cutoff=_SIMILAR):
                yield f"at {pointer}: {quoted(key)} is no keyword, so it has no effect; did you mean {near[0]!r}?"


def _targets(document: Document, schema: Any, resolver: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the schemas that a schema refers to, with their resolvers.

    Raises ValueError for a reference that leads nowhere, or not to a schema.
    """
    pointer = document.pointer(schema, "#")
    for keyword, reference in references_of(schema):
        try:
            contents, there = document.resolve(reference, resolver)
        except UnresolvedError:
            raise _fault(f"{pointer}/{keyword}", _nowhere(reference)) from None
        if not isinstance(contents, dict | bool):
            raise _fault(f"{pointer}/{keyword}", f"{quoted(reference)} is not a schema; correct the reference")
        yield contents, there


def _in_place(document: Document, schema: Any, resolver: Any) -> Iterator[int]:
    """Yield the ids of the schemas that a schema applies to the same value."""
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        yield id(document.resolve(schema["$ref"], resolver)[0])
    for keyword in IN_PLACE:
        below = schema.get(keyword)
        if keyword.startswith("depend"):
            below = list(below.values()) if isinstance(below, dict) else []
        yield from (id(one) for one in (below if isinstance(below, list) else [below]) if isinstance(one, dict))


def _nowhere(reference: str) -> str:
    if reference.startswith("#"):
        return f"{quoted(reference)} leads nowhere in this file; correct the reference"
    return f"{quoted(reference)} is not in this file, and nothing is fetched; copy that schema into $defs"
