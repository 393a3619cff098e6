"""Read JSON sent by a peer, within bounds: each field has its type and is in its range, or `AnswerError` is raised.

Any client that can publish to an inbox can send anything there. None of it may surprise the reader: not a number of
5,000 digits, `1e999`, `true` for 1, a name given twice, or a hundred thousand brackets. Pure.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from router_trio.errors.quotes import excerpt

MAX_NAME = 255
"""Maximum number of characters of the name of a stream or a consumer, as in nats-server."""

MAX_SUBJECT = 4096
"""Maximum number of characters of a subject."""

_INT64 = 2**63 - 1
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{1,24}(?:Z|[+-][0-9]{2}:[0-9]{2})")


class AnswerError(ValueError):
    """An answer is malformed. The text describes the problem, and quotes nothing but the names of fields."""


class Object:
    """A JSON object. Every method raises `AnswerError` for a value of another type, or out of its range.

    A field that is null counts as absent. `where` is the object's path in errors, `""` for the entire answer.
    """

    def __init__(self, fields: dict[str, Any], where: str = "") -> None:
        self._fields = fields
        self._where = where

    @property
    def fields(self) -> dict[str, Any]:
        """All fields, as they were sent."""
        return self._fields

    def number(self, name: str, default: int | None = None, *, low: int = 0, high: int = _INT64) -> int:
        """Return an integer. Raises if it is absent and there is no default."""
        value = self._fields.get(name, default)
        if value is None:
            value = default
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, f"a whole number from {low} to {high}")
        return value

    def duration(self, name: str) -> float:
        """Return the seconds of a field in nanoseconds; 0 if it is absent."""
        return self.number(name, 0) / 1e9

    def flag(self, name: str) -> bool:
        """Return a boolean; False if it is absent."""
        value = self._fields.get(name)
        if value is not None and type(value) is not bool:
            raise self._wrong(name, "true or false")
        return bool(value)

    def text(self, name: str, default: str | None = None, *, most: int = MAX_NAME) -> str:
        """Return a printable text of at most `most` characters. Raises if it is absent and there is no default."""
        value = self._fields.get(name)
        if value is None:
            value = default
        if type(value) is not str or len(value) > most or not value.isprintable():
            raise self._wrong(name, f"a printable text of at most {most} characters")
        return value

    def time(self, name: str, default: str | None = None) -> str:
        """Return a time in the form of RFC 3339, as text. Raises if it is absent and there is no default."""
        value = self.text(name, default, most=40)
        if value != default and not _TIME.fullmatch(value):
            raise self._wrong(name, "a time")
        return value

    def description(self, name: str) -> str:
        """Return the beginning of a text for people, which may contain anything; `""` if it is absent."""
        value = self._fields.get(name)
        if value is not None and type(value) is not str:
            raise self._wrong(name, "a text")
        return excerpt(value or "")

    def optional_subject(self, name: str) -> str:
        """Return a subject, which may contain any characters; `""` if it is absent."""
        value = self._fields.get(name)
        if value is not None and not _is_subject(value):
            raise self._wrong(name, f"a text of at most {MAX_SUBJECT} characters")
        return value or ""

    def octets(self, name: str) -> bytes:
        """Return bytes written in base64; `b""` if the field is absent."""
        value = self._fields.get(name)
        if value is None:
            return b""
        try:
            return b64decode(value, validate=True)
        except (TypeError, ValueError):
            raise self._wrong(name, "bytes in base64") from None

    def subjects(self, name: str, *, most: int) -> tuple[str, ...]:
        """Return a list of subjects, which may contain any characters; empty if it is absent."""
        return self._list(name, most, f"texts of at most {MAX_SUBJECT} characters", _is_subject)

    def names(self, name: str, *, most: int) -> tuple[str, ...]:
        """Return a list of printable names of streams or consumers; empty if it is absent."""
        return self._list(name, most, f"printable texts of 1 to {MAX_NAME} characters", _is_name)

    def numbers(self, name: str, *, most: int) -> tuple[int, ...]:
        """Return a list of integers of 64 bits; empty if it is absent."""
        return self._list(name, most, "whole numbers of 64 bits", _is_number)

    def has(self, name: str) -> bool:
        """Return True if this field exists and is not empty."""
        return bool(self._fields.get(name))

    def object(self, name: str) -> Object | None:
        """Return an object in this one; None if it is absent."""
        value = self._fields.get(name)
        if value is None:
            return None
        if type(value) is not dict:
            raise self._wrong(name, "an object")
        return Object(value, f"{self._where}{name}.")

    def objects(self, name: str, *, most: int) -> tuple[Object, ...]:
        """Return a list of objects; empty if it is absent."""
        found = self._list(name, most, "objects", _is_object)
        return tuple(Object(one, f"{self._where}{name}.") for one in found)

    def required(self, name: str) -> Object:
        """Return an object in this one. Raises if it is absent."""
        found = self.object(name)
        if found is None:
            raise self._wrong(name, "an object")
        return found

    def _list(self, name: str, most: int, wanted: str, fits: Callable[[Any], bool]) -> tuple[Any, ...]:
        """Return a list of at most `most` elements that all pass `fits`; empty if it is absent."""
        value = self._fields.get(name)
        if value is None:
            return ()
        if type(value) is not list or len(value) > most or not all(map(fits, value)):
            raise self._wrong(name, f"a list of at most {most} {wanted}")
        return tuple(value)

    def _wrong(self, name: str, wanted: str) -> AnswerError:
        return AnswerError(f"{self._where}{name} is not {wanted}")


def _is_subject(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_SUBJECT


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_NAME and value.isprintable()


def _is_number(value: Any) -> bool:
    return type(value) is int and -_INT64 <= value <= _INT64


def _is_object(value: Any) -> bool:
    return type(value) is dict


def read(body: bytes, most: int) -> Object:
    """Return the object in a body of at most `most` bytes. Raises `AnswerError`."""
    if len(body) > most:
        raise AnswerError(f"it has more than {most} bytes")
    try:
        value = json.loads(body, object_pairs_hook=_fields, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, AnswerError) else AnswerError("it is not JSON") from error
    if type(value) is not dict:
        raise AnswerError("it is not a JSON object")
    return Object(value)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise AnswerError("it names a field twice")
    return fields


def _refuse(constant: str) -> Any:
    raise AnswerError(f"{constant} is not JSON")
