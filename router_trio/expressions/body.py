"""JSON payloads: decoded as a whole, or only the fields that expressions use.

A number without fraction and exponent is an int if it fits into 64 bits, else a double; one that is too large for a
double is an infinity. Of a key that is there twice, the last one counts. Both ways to decode refuse the same payloads
and give the same values: the record is left out where it could not.

What a payload costs is taken off the budget before it is decoded: no regular expression looks at it, and each look at
the whole of it is one pass in C.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from router_trio.errors import EvaluationError
from router_trio.expressions.language.usage import Path
from router_trio.expressions.values import MAX_INT, MIN_INT, Budget, Value

_decode = msgspec.json.Decoder().decode
_Decoder = msgspec.json.Decoder
_BACKSLASH = ord("\\")
MOST_BRACKETS = 200
"""Of a payload that a record is made from: with more of them it may be nested so deep that the decoder refuses it."""
FREE = 1024
"""Bytes of a payload that is decoded without a look at what that costs: less than 0.1 ms for nearly all of them."""
_INFINITE = 400
"""Digits of an int beyond which the others don't count: it is an infinity."""

_DIGITS = bytes(range(48, 58))


def _marks(kept: dict[bytes, bytes]) -> bytes:
    """Return the table of `bytes.translate` that puts a mark in place of some bytes, and a space in place of others."""
    table = bytearray(b" " * 256)
    for found, mark in kept.items():
        for byte in found:
            table[byte] = mark[0]
    return bytes(table)


_DIGITS_AS_ZEROS = _marks({_DIGITS: b"0"})
_NUMBERS = _marks({_DIGITS: b"0", b".": b"0", b"eE": b"e", b"+-": b"-"})
_LONG = b"0" * 19
"""As many digits may not fit into 64 bits."""
_SLOW = b"0" * 21
"""A number with as many digits takes the decoder longer: some 30 ns a digit."""
_ENDLESS = b"0" * (_INFINITE + 1)

_Scalar = None | bool | Annotated[int, msgspec.Meta(ge=MIN_INT, le=MAX_INT)] | float | str | UnsetType


def decode(payload: bytes, budget: Budget | None = None) -> Value:
    """Return what a JSON payload holds. Raises EvaluationError if it is no JSON, nested too deep, or costs too much."""
    try:
        run = _decode if len(payload) <= FREE else _charged(payload, budget or Budget())
        try:
            value = run(payload)
        except msgspec.ValidationError:  # a number that is too large for the decoder
            value = _with_large_numbers(payload, budget or Budget())
        if _may_have_long_number(payload) and _LONG in payload.translate(_DIGITS_AS_ZEROS):
            value = _fitted(value, budget or Budget())
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise EvaluationError(NO_JSON) from None
    except RecursionError:
        raise EvaluationError(TOO_DEEP) from None
    except EvaluationError:
        raise EvaluationError(TOO_MUCH) from None
    return value


NO_JSON = "the body is no JSON"
TOO_DEEP = "the body is nested too deep"
TOO_MUCH = "the body takes too long to decode: MAX_COST is used up"


def _charged(payload: bytes, budget: Budget) -> Any:
    """Take off the budget what it costs to decode a payload; return what decodes it in that time."""
    count = payload.count
    budget.spend(
        (len(payload) >> 6) + (count(b'"') >> 3) + (count(b",") >> 2) + count(b"[") + count(b"{") + (count(b":") >> 2)
    )
    numbers = payload.translate(_NUMBERS)
    budget.spend(numbers.count(_SLOW) * 7)
    return _paying(budget) if _has_slow_numbers(numbers) else _decode


def _has_slow_numbers(numbers: bytes) -> bool:
    """Return True if an exponent has three digits: near the end of the range the decoder takes 15 µs, Python 0.5."""
    return b"e000" in numbers or b"e-000" in numbers


def _paying(budget: Budget) -> Any:
    """Return what decodes a payload and has Python read its doubles, each of which is paid for."""

    def read(text: str) -> float:
        budget.spend(5 + (len(text) >> 1))
        return float(text)

    return _Decoder(float_hook=read).decode


def _with_large_numbers(payload: bytes, budget: Budget) -> Value:
    """Decode a payload with a number that the decoder refuses as too large."""
    decode_leniently = _paying(budget)
    budget.spend(len(payload) >> 4)
    try:
        return decode_leniently(payload)
    except msgspec.ValidationError:  # an int with thousands of digits
        return decode_leniently(_shortened(payload, budget))


def _shortened(payload: bytes, budget: Budget) -> bytes:
    """Return a payload with the first digits of each int that is an infinity anyway."""
    numbers = payload.translate(_DIGITS_AS_ZEROS)
    # As long, and every quote that is left begins or ends a string.
    quotes = payload.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
    kept: list[bytes] = []
    within = False
    done = looked_at = 0
    at = numbers.find(_ENDLESS)
    while at >= 0:
        budget.spend(20)
        end = numbers.find(b" ", at)
        end = len(payload) if end < 0 else end
        within ^= quotes.count(b'"', looked_at, at) & 1 == 1
        looked_at = at
        before = payload[max(0, at - 2) : at]
        of_double = before[-1:] in _BEFORE or before in _BEFORE or payload[end : end + 1] in _BEHIND
        if not within and not of_double:
            kept.append(payload[done : at + _INFINITE])
            done = end
        at = numbers.find(_ENDLESS, end)
    return b"".join([*kept, payload[done:]])


_BEFORE = frozenset({b".", b"e", b"E", b"+", b"e-", b"E-"})
_BEHIND = frozenset({b".", b"e", b"E"})
"""The characters before or after the digits of a double."""


def _fitted(value: Value, budget: Budget) -> Value:
    """Return the value that was decoded with the ints that don't fit into 64 bits as doubles. Changes it in place."""
    kind = value.__class__
    if kind is int:
        return value if MIN_INT <= value <= MAX_INT else _as_double(value, budget)
    if kind is list or kind is dict:
        budget.spend(len(value))
        for place, one in enumerate(value) if kind is list else value.items():
            inner = one.__class__
            if inner is int:
                if not MIN_INT <= one <= MAX_INT:
                    value[place] = _as_double(one, budget)
            elif inner is list or inner is dict:
                _fitted(one, budget)
    return value


def _as_double(value: int, budget: Budget) -> float:
    budget.spend(8)
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


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

    def record(self, payload: bytes, message: Any = None) -> Any:
        """Return the record of a payload, or None. Raises EvaluationError if `message` has no budget left for it."""
        decode = self._decode
        if (
            decode is None
            or (len(payload) > FREE and not self._affords(payload, Budget() if message is None else message.budget))
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

    def _affords(self, payload: bytes, budget: Budget) -> bool:
        """Take what a record costs off the budget; return False where it might cost much more than that."""
        if self._has_more:
            return _charged(payload, budget) is _decode
        budget.spend(len(payload) >> 5)
        return not _has_slow_numbers(payload.translate(_NUMBERS))


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
