"""JSON payloads: decoded as a whole, or only the fields that expressions use.

A number without fraction and exponent is an int if it fits into 64 bits, else a double; one that is too large for a
double is an infinity. Of a key that is there twice, the last one counts. Both ways to decode refuse the same payloads
and give the same values: the record is left out where it could not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from router_trio.errors import EvaluationError
from router_trio.expressions.language.usage import Path
from router_trio.expressions.values import MAX_INT, MIN_INT, Value

_decode = msgspec.json.Decoder().decode
_decode_leniently = msgspec.json.Decoder(float_hook=float).decode
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_DIGITS_AS_ZEROS = bytes(48 if 48 <= byte <= 57 else 32 for byte in range(256))
_BACKSLASH = ord("\\")
MOST_BRACKETS = 200
"""Of a payload that a record is made from: with more of them it may be nested so deep that the decoder refuses it."""

_Scalar = None | bool | Annotated[int, msgspec.Meta(ge=MIN_INT, le=MAX_INT)] | float | str | UnsetType


def decode(payload: bytes) -> Value:
    """Return what a JSON payload holds. Raises EvaluationError if it is no JSON, or nested too deep."""
    try:
        try:
            value = _decode(payload)
        except msgspec.ValidationError:  # a number that is too large for the decoder
            value = _with_large_numbers(payload)
        if _may_have_long_number(payload) and _LONG_NUMBER.search(payload):
            value = _fitted(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise EvaluationError("the body is no JSON") from None
    except RecursionError:
        raise EvaluationError("the body is nested too deep") from None
    return value


def _with_large_numbers(payload: bytes) -> Value:
    """Decode a payload with a number that the decoder refuses as too large."""
    digits = re.sub(rb'("(?:[^"\\]|\\.)*")|([0-9]{400})[0-9]+(?=[\s,\]}]|\Z)', rb"\1\2", payload, flags=re.DOTALL)
    return _decode_leniently(digits)


def _fitted(value: Value) -> Value:
    """Return the value with the ints that don't fit into 64 bits as doubles."""
    kind = value.__class__
    if kind is int and not MIN_INT <= value <= MAX_INT:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    if kind is list:
        return [_fitted(one) for one in value]
    if kind is dict:
        return {key: _fitted(one) for key, one in value.items()}
    return value


class BodyReader:
    """Decodes the fields of bodies that some expressions use, if that is possible.

    `record(payload)` gives an object with an attribute for each field (`access.attribute`), UNSET for one that is not
    there. It gives None where it could differ from `decode`: then the body is decoded as a whole.
    """

    __slots__ = ("_decode", "_has_more")

    def __init__(self, fields: Mapping[Path, bool] | None) -> None:
        """`fields` are the paths, True for one that may be more than a scalar; None: the body as a whole is used."""
        self._decode = None
        self._has_more = fields is not None and any(fields.values())
        # Below a scalar there are no fields, and below a field that may be anything the rest is not in the record.
        if fields and not any(path[:end] in fields for path in fields for end in range(1, len(path))):
            self._decode = msgspec.json.Decoder(_record_type(fields, ())).decode

    def record(self, payload: bytes) -> Any:
        """Return the record of a payload, or None. Raises nothing."""
        decode = self._decode
        if (
            decode is None
            # What the record leaves out is not looked at: whether it is UTF-8, half a surrogate pair, or too deep.
            or (_BACKSLASH in payload and b"\\u" in payload)
            or not (payload.isascii() or _is_utf8(payload))
            or (len(payload) > 2 * MOST_BRACKETS and payload.count(b"[") + payload.count(b"{") > MOST_BRACKETS)
            or (self._has_more and _may_have_long_number(payload))
        ):
            return None
        try:
            return decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


def _may_have_long_number(payload: bytes) -> bool:
    """Return True if there may be 19 digits in a row, of which every sixth byte has three."""
    return b"000" in payload[::6].translate(_DIGITS_AS_ZEROS)


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _record_type(fields: Mapping[Path, bool], above: Path) -> Any:
    """Return the type of the record of the fields below a path."""
    depth = len(above)
    names = dict.fromkeys(path[depth] for path in fields if path[:depth] == above)
    members = []
    for name in names:
        path = (*above, name)
        kind: Any = _record_type(fields, path) | UnsetType if path not in fields else Any if fields[path] else _Scalar
        members.append((f"f_{name}", kind, UNSET))
    return msgspec.defstruct("Record", members, rename={f"f_{name}": name for name in names})


def reader_for(fields: Iterable[Mapping[Path, bool] | None]) -> BodyReader:
    """Return the reader for several expressions that look at the same messages, each with its fields."""
    together: dict[Path, bool] = {}
    for one in fields:
        if one is None:
            return WHOLE
        for path, more in one.items():
            together[path] = together.get(path, False) or more
    return BodyReader(together)


WHOLE = BodyReader(None)
"""Decodes bodies as a whole."""
