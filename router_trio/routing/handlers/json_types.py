"""Types of JSON bodies and answers: decode into them, encode from them, and describe what does not fit.

A description has the path and what was expected there. It never has a value of the message, nor a key that the type
does not name: validators of users may quote both, and so do some of the libraries' own texts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache, cached_property, partial
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Protocol,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pydantic import Field, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticKnownError, PydanticSerializationError, from_json, to_json

from router_trio.errors import HandlerError, InvalidBodyError
from router_trio.errors.quotes import excerpt, text_of_error

MOST_DESCRIBED = 100
"""Errors of one body up to which they are described: pydantic lists them all, or none, and takes 40 µs for each."""

MOST_SHOWN = 3
"""Errors of one body that its description contains."""

LONGEST_ERROR = 150
"""Characters of each of these."""

NO_JSON = "the body is not JSON"
TOO_DEEP = "the body is nested too deeply"
_REFUSED = "a validator refused it"
_ANY_KEY = "[*]"

Mode = Literal["validation", "serialization"]


class JsonAnswer(Protocol):
    """A type of answers."""

    name: str

    def encode(self, value: Any) -> bytes:
        """Return the JSON of a value. Raises `HandlerError` if it does not fit, or has no JSON form."""
        ...

    def schema(self, mode: Mode) -> dict[str, Any] | None:
        """Return the JSON schema of what is accepted, or of what is written; None if the type has no schema."""
        ...


class JsonType(JsonAnswer, Protocol):
    """A type of bodies or answers."""

    def decode(self, payload: bytes) -> Any:
        """Return the value of a JSON payload. Raises `InvalidBodyError` if it does not fit."""
        ...


def json_type(annotation: Any, name: str) -> JsonType:
    """Return the type of an annotation, which is shown as `name`. Raises `HandlerError` if it can't be validated."""
    try:
        return _OfMsgspec(annotation, name) if _has_struct(annotation) else _OfPydantic(annotation, name)
    except PydanticSchemaGenerationError as error:
        # Its further advice, `arbitrary_types_allowed`, would accept the type and no JSON.
        cause = text_of_error(error).partition(". Set ")[0]
        raise HandlerError(f"{cause}; use a pydantic model, a dataclass, a TypedDict or a msgspec.Struct") from error
    except Exception as error:  # code of users runs here, too: a type may define its own schema
        raise HandlerError(text_of_error(error).partition("\n")[0].rstrip(".")) from error


class AnyJson:
    """The type of answers without an annotation: any value that has a JSON form."""

    name = "Any"

    def encode(self, value: Any) -> bytes:
        """Return the JSON of a value. Raises `HandlerError` if it has none."""
        try:
            return to_json(value, by_alias=True, inf_nan_mode="null", fallback=_of_struct)
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            found = _not_written(error)
        raise HandlerError(found)

    def schema(self, mode: Mode) -> None:
        """Return None: the schema of any value says nothing."""


class _Quiet(GenerateJsonSchema):
    """Makes schemas without warnings about parts of a type that have none."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default", "skipped-discriminator"}  # noqa: RUF012


class _OfPydantic:
    """A type that pydantic validates: a model, a dataclass, a TypedDict, a container or a scalar."""

    def __init__(self, annotation: Any, name: str) -> None:
        self.name: str = name
        self._type: TypeAdapter[Any] = TypeAdapter(_for_pydantic(annotation))
        if not self._type.pydantic_complete:
            self._type.rebuild(raise_errors=True)
        # Called without the adapter, which takes as long as they do.
        self._validate_json = self._type.validator.validate_json
        self._validate = self._type.validator.validate_python
        self._to_json = self._type.serializer.to_json

    @cached_property
    def _known(self) -> _Known:
        return _Known(_names_in(self), frozenset(_constants_in(self._type.core_schema)))

    def decode(self, payload: bytes) -> Any:
        """Return the value of a JSON payload. Raises `InvalidBodyError` if it does not fit."""
        try:
            return self._validate_json(payload)
        except ValidationError as error:
            found = _described(error, payload, self.name, self._known)
        except RecursionError:
            found = TOO_DEEP
        raise InvalidBodyError(found)

    def encode(self, value: Any) -> bytes:
        """Validate a value and return its JSON. Raises `HandlerError` if it does not fit, or has no JSON form."""
        try:
            return self._to_json(self._validate(value), by_alias=True, warnings=False)
        except ValidationError as error:
            found = f"the answer does not fit {self.name}: {_described(error, value, self.name, self._known)}"
        except (PydanticSerializationError, RecursionError) as error:
            found = _not_written(error)
        raise HandlerError(found)

    def schema(self, mode: Mode) -> dict[str, Any] | None:
        """Return the JSON schema of the type; None if it has none."""
        try:
            return self._type.json_schema(mode=mode, schema_generator=_Quiet)
        except Exception:  # code of users runs here, too
            return None


class _OfMsgspec:
    """A type with a `msgspec.Struct` in it."""

    def __init__(self, annotation: Any, name: str) -> None:
        import msgspec  # only here: an import takes memory and time of every router

        self.name: str = name
        self._annotation = annotation
        self._decode = msgspec.json.Decoder(annotation).decode
        self._encode = msgspec.json.Encoder().encode
        self._is_class = isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)
        self._invalid = msgspec.ValidationError
        self._no_json = (msgspec.DecodeError, UnicodeDecodeError)

    @cached_property
    def _names(self) -> frozenset[str]:
        return _names_in(self)

    def decode(self, payload: bytes) -> Any:
        """Return the value of a JSON payload. Raises `InvalidBodyError` if it does not fit."""
        try:
            return self._decode(payload)
        except self._invalid as error:
            found = _described_by_msgspec(error, self._names)
        except self._no_json:
            found = NO_JSON
        except RecursionError:
            found = TOO_DEEP
        raise InvalidBodyError(found)

    def encode(self, value: Any) -> bytes:
        """Return the JSON of a value. Raises `HandlerError` if it does not fit, or has no JSON form."""
        try:
            written = self._encode(value)
            if not (self._is_class and isinstance(value, self._annotation)):
                self._decode(written)
            return written
        except self._invalid as error:
            found = f"the answer does not fit {self.name}: {_described_by_msgspec(error, self._names)}"
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            found = _not_written(error)
        raise HandlerError(found)

    def schema(self, mode: Mode) -> dict[str, Any] | None:
        """Return the JSON schema of the type; None if it has none."""
        import msgspec

        try:
            return msgspec.json.schema(self._annotation)
        except Exception:  # it has a type that only a hook can decode
            return None


# --- structs ---


def _has_struct(annotation: Any) -> bool:
    """Return True if a `msgspec.Struct` is part of the annotation."""
    msgspec = sys.modules.get("msgspec")
    if msgspec is None:
        return False
    if isinstance(annotation, type) and not get_args(annotation):
        return issubclass(annotation, msgspec.Struct)
    return any(map(_has_struct, get_args(annotation)))


def _of_struct(value: Any) -> Any:
    """Return a value that pydantic can't write as values that it can. Raises `TypeError` if it is no struct."""
    msgspec = sys.modules.get("msgspec")
    if msgspec is None or not isinstance(value, msgspec.Struct):
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    return msgspec.to_builtins(value)


# --- typed dictionaries ---


def _for_pydantic(annotation: Any) -> Any:
    """Return the annotation with each `TypedDict` as pydantic takes it: before Python 3.12, not that of `typing`."""
    if sys.version_info >= (3, 12):
        return annotation
    if is_typeddict(annotation) and type(annotation).__module__ == "typing":
        return _typed_dict(annotation)
    parts = get_args(annotation)
    if not parts or get_origin(annotation) is Literal:
        return annotation
    converted = tuple(map(_for_pydantic, parts))
    if all(one is before for one, before in zip(converted, parts, strict=True)):
        return annotation
    origin = get_origin(annotation)
    return Union[converted] if origin in (Union, UnionType) else origin[converted]  # noqa: UP007 - at run time


@cache
def _typed_dict(kind: Any) -> Any:
    from typing_extensions import TypedDict

    hints = get_type_hints(kind, include_extras=True)
    fields = {}
    for name, hint in hints.items():
        stated = get_origin(hint) in (Required, NotRequired)
        inner = _for_pydantic(get_args(hint)[0] if stated else hint)
        optional = get_origin(hint) is NotRequired if stated else name in kind.__optional_keys__
        fields[name] = NotRequired[inner] if optional else inner
    return TypedDict(kind.__name__, fields)  # type: ignore[operator]  # a type made at run time


# --- descriptions ---


def _names_in(kind: JsonType) -> frozenset[str]:
    """Return the names of all fields of a type. They may be shown, since they come from code."""
    return frozenset(_properties(kind.schema("validation")))


def _properties(schema: object) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            properties = one.get("properties")
            if isinstance(properties, dict):
                yield from properties
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


class _Known(NamedTuple):
    """The words of a type that descriptions may show, since they are from code: its fields and its constants."""

    names: frozenset[str]
    constants: frozenset[str]


_KINDS_OF_FIELDS = ("List", "Tuple", "Set", "Frozenset", "Dictionary", "Deque", "Mapping", "Iterable", "Generator")
"""Words of pydantic for what is too short or too long."""


_TIMES = (datetime, date, time, timedelta)


def _constants_in(schema: object) -> Iterator[str]:
    """Yield the constants in a type, by the schema that pydantic has of it, as its errors write them."""
    yield from _KINDS_OF_FIELDS
    waiting, seen = [schema], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list | tuple | partial):
            if id(one) in seen:
                continue
            seen.add(id(one))
        if isinstance(one, dict):
            yield from _choices_in(one)
            waiting.extend(one.values())
        elif isinstance(one, list | tuple):
            waiting.extend(one)
        elif isinstance(one, partial):  # a constraint that pydantic checks with a function
            waiting.extend(one.keywords.values())
        elif isinstance(one, type):
            yield one.__name__
        elif isinstance(one, str | int | float | Decimal | Fraction):
            yield str(one)
        elif isinstance(one, _TIMES):
            yield _limit(one)


def _limit(value: Any) -> str:
    """Return a date, a time or a duration as pydantic writes it in an error."""
    kind: Any = next(kind for kind in _TIMES if isinstance(value, kind))
    below: Any = Annotated[kind, Field(lt=value)]
    try:
        TypeAdapter(below).validate_python(value)
    except ValidationError as error:
        return str(error.errors()[0].get("ctx", {}).get("lt"))
    return str(value)


def _choices_in(schema: dict[Any, Any]) -> Iterator[str]:
    """Yield the values and the tags that a part of a schema accepts, as pydantic lists them."""
    for key in ("expected", "allowed_schemes"):
        yield _one_of(schema.get(key))
    members = schema.get("members")
    if isinstance(members, list):
        yield _one_of([getattr(member, "value", None) for member in members])
    choices = schema.get("choices")
    if isinstance(choices, dict):
        yield ", ".join(map(repr, choices))
    yield repr(schema.get("discriminator"))


def _one_of(values: object) -> str:
    """Return `1, 2 or 3` for a list."""
    shown = list(map(repr, values)) if isinstance(values, list) else []
    return " or ".join((", ".join(shown[:-1]), shown[-1])) if len(shown) > 1 else "".join(shown)


def _described(error: ValidationError, found: Any, name: str, known: _Known) -> str:
    """Return what does not fit in `found`, a payload or a value."""
    count = error.error_count()
    if count > MOST_DESCRIBED:
        return f"it does not fit {name} in {count:,} places"
    errors = error.errors(include_url=False, include_input=False)
    if isinstance(found, bytes):
        if errors[0]["type"] == "json_invalid" and not errors[0]["loc"]:
            is_deep = str(errors[0].get("ctx", {}).get("error", "")).startswith("recursion")
            return TOO_DEEP if is_deep else NO_JSON
        is_below = any(one["loc"] for one in errors[:MOST_SHOWN])
        found = _parsed(found) if is_below else None  # a body may have many megabytes
    shown = [f"{_path(one['loc'], found, known.names)}: {_expected(one, known)}" for one in errors[:MOST_SHOWN]]
    return _joined(shown, count)


def _joined(shown: Iterable[str], count: int) -> str:
    lines = [excerpt(one, LONGEST_ERROR) for one in shown]
    more = count - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def _parsed(payload: bytes) -> Any:
    try:
        return from_json(payload)
    except ValueError:
        return None


def _path(place: Sequence[int | str], found: Any, names: frozenset[str]) -> str:
    """Return a place in a body as a path. pydantic's has the names of a union's members, too: these are left out."""
    path = ["$"]
    for step in place:
        if isinstance(step, int):
            inside = isinstance(found, list) and step < len(found)
            path.append(f"[{step}]" if inside else _ANY_KEY)
            found = found[step] if inside else None
        elif isinstance(found, dict) and step in found:
            path.append(_key(step, names))
            found = found[step]
        elif step in names:
            path.append(_key(step, names))
            found = None
    return "".join(path)


def _key(name: str, names: frozenset[str]) -> str:
    if name not in names:
        return _ANY_KEY
    return f".{name}" if name.isidentifier() else f"[{json.dumps(name)}]"


_FOR_JSON = {
    "model_type": "Input should be an object",
    "dataclass_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "list_type": "Input should be an array",
    "tuple_type": "Input should be an array",
    "set_type": "Input should be an array",
    "frozen_set_type": "Input should be an array",
}
"""Texts in place of those of pydantic that name types of Python."""


_QUOTES = re.compile(r"(?:, got|, error|, not|[,:])? \{(?:error|encoding_error|tz_actual|actual_length)\}")
"""Parts of pydantic's texts that are about the value, not about what is expected."""

_CONTEXT = re.compile(r"\{(\w+)\}")


def _expected(error: Any, known: _Known) -> str:
    """Return what was expected, in pydantic's words, without what they quote of the value."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind in ("value_error", "assertion_error"):
        return _REFUSED
    if (own := _FOR_JSON.get(kind)) is not None:
        return own
    if kind == "union_tag_invalid":
        template = "Input tag should be one of {expected_tags}"
    else:
        try:
            # Not `msg`: that of an error that a validator made itself may be anything.
            template = PydanticKnownError(kind, context or None).message_template
        except (KeyError, TypeError, ValueError):
            return _REFUSED

    def shown(part: re.Match[str]) -> str:
        if part[1] == "expected_plural":
            return "" if 1 in (count for name, count in context.items() if name != "actual_length") else "s"
        # A validator may raise an error of pydantic's with a value of the message in it.
        text = str(context.get(part[1]))
        return text if text in known.constants else "..."

    return _CONTEXT.sub(shown, _QUOTES.sub("", template))


_PLACE = re.compile(r" - at `(?:(?P<key>key)` in `)?(?P<path>\$[^`]*)`\Z")
_STEP = re.compile(r"\.([^.\[\]]+)|(\[[0-9]+\])|(\[\.\.\.\])")
_PLAIN = re.compile(r"[A-Za-z0-9 ]+")


def _described_by_msgspec(error: BaseException, names: frozenset[str]) -> str:
    text, cause = str(error), error.__cause__
    if cause is not None:  # the text of a validator of users, followed by the path
        quoted = text_of_error(cause, len(text) + 1) if str(cause) else ""
        place = _PLACE.fullmatch(text.removeprefix(str(cause))) if quoted else None
        expected = _REFUSED
    else:
        place = _PLACE.search(text)
        expected = _expected_by_msgspec(text[: place.start()] if place else text)
    path = "$" if place is None else _path_by_msgspec(place["path"], names)
    return _joined([f"{path}: {expected}"], 1)


def _expected_by_msgspec(text: str) -> str:
    if text.startswith("Object contains unknown field"):
        return "Object contains an unknown field"
    if text.startswith(("Invalid enum value", "Invalid value")):
        return "Invalid value"
    if text.startswith(("Expected ", "Object missing required field ")) or _PLAIN.fullmatch(text):
        return text
    return _REFUSED


def _path_by_msgspec(path: str, names: frozenset[str]) -> str:
    found = ["$"]
    for name, index, _ in _STEP.findall(path):
        found.append(_key(name, names) if name else index or _ANY_KEY)
    return "".join(found)


_MAY_BE_SHOWN = re.compile(
    r"(Unable to serialize unknown type: <class '[\w.<>]+'>"
    r"|Encoding objects of type [\w.<>]+ is unsupported"
    r"|Maximum serialization depth exceeded|Circular reference detected|invalid utf-8 sequence)"
)


def _not_written(error: BaseException) -> str:
    """Return why an answer can't be written, without the rest of a text that may quote it."""
    text = "it is nested too deeply" if isinstance(error, RecursionError) else text_of_error(error, LONGEST_ERROR)
    known = _MAY_BE_SHOWN.search(text)
    if known is not None:
        text = known[1]
    elif not isinstance(error, RecursionError):
        text = type(error).__name__
    return f"the answer can't be written as JSON: {text}"
