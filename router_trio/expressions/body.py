"""Decode JSON payloads, completely or only the fields that expressions use.

A number without fraction and exponent is an int if it fits into 64 bits, else a double; one that is too large for a
double is an infinity. If a key occurs twice, the last one counts. Both ways to decode refuse the same payloads and give
the same values: no record is made of a payload for which that is uncertain.

The cost of a payload is charged to the budget before it is decoded. It is estimated without regular expressions, by
passes over the payload that run in C.
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
"""Maximum number of brackets in a payload for which a record is made: with more the decoder may refuse its nesting."""
FREE = 1024
"""Bytes up to which a payload is decoded free of charge: less than 0.1 ms for nearly all of them."""
_INFINITE = 400
"""Number of digits from which an int is an infinity, whatever its further digits."""

_DIGITS = bytes(range(48, 58))


def _marks(kept: dict[bytes, bytes]) -> bytes:
    """Return a table for `bytes.translate` that replaces the given bytes by their marks and all others by a space."""
    table = bytearray(b" " * 256)
    for found, mark in kept.items():
        for byte in found:
            table[byte] = mark[0]
    return bytes(table)


_DIGITS_AS_ZEROS = _marks({_DIGITS: b"0"})
_NUMBERS = _marks({_DIGITS: b"0", b".": b"0", b"eE": b"e", b"+-": b"-"})
_LONG = b"0" * 19
"""A number with this many digits may not fit into 64 bits."""
_SLOW = b"0" * 21
"""A number with this many digits is slow to decode: about 30 ns per digit."""
_ENDLESS = b"0" * (_INFINITE + 1)

_Scalar = None | bool | Annotated[int, msgspec.Meta(ge=MIN_INT, le=MAX_INT)] | float | str | UnsetType


def decode(payload: bytes, budget: Budget | None = None) -> Value:
    """Return the value of a JSON payload. Raises EvaluationError if it is not JSON, too deep or too costly."""
    try:
        run = _decode if len(payload) <= FREE else _charged(payload, budget or Budget())
        try:
            value = run(payload)
        except msgspec.ValidationError:  # a number is too large for the decoder
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


NO_JSON = "the body is not JSON"
TOO_DEEP = "the body is nested too deeply"
TOO_MUCH = "the body takes too long to decode: MAX_COST is used up"


def _charged(payload: bytes, budget: Budget) -> Any:
    """Charge the estimated cost of decoding a payload; return a decoder that does not exceed it."""
    count = payload.count
    budget.spend(
        (len(payload) >> 6) + (count(b'"') >> 3) + (count(b",") >> 2) + count(b"[") + count(b"{") + (count(b":") >> 2)
    )
    numbers = payload.translate(_NUMBERS)
    budget.spend(numbers.count(_SLOW) * 7)
    return _paying(budget) if _has_slow_numbers(numbers) else _decode


def _has_slow_numbers(numbers: bytes) -> bool:
    """Return True if an exponent has three digits: such doubles may take the decoder 15 µs, but Python only 0.5 µs."""
    return b"e000" in numbers or b"e-000" in numbers


def _paying(budget: Budget) -> Any:
    """Return a decoder that parses doubles with Python's `float`, and charges each to the budget."""

    def read(text: str) -> float:
        budget.spend(5 + (len(text) >> 1))
        return float(text)

    return _Decoder(float_hook=read).decode


def _with_large_numbers(payload: bytes, budget: Budget) -> Value:
    """Decode a payload with a number that is too large for the default decoder."""
    decode_leniently = _paying(budget)
    budget.spend(len(payload) >> 4)
    try:
        return decode_leniently(payload)
    except msgspec.ValidationError:  # an int with thousands of digits
        return decode_leniently(_shortened(payload, budget))


def _shortened(payload: bytes, budget: Budget) -> bytes:
    """Return the payload with each int that is an infinity cut to its first digits."""
    numbers = payload.translate(_DIGITS_AS_ZEROS)
    # The same length as the payload, with only the quotes that begin or end a string.
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
"""Characters before and after a run of digits that show it to be part of a double."""


def _fitted(value: Value, budget: Budget) -> Value:
    """Convert the ints that don't fit into 64 bits to doubles, in place. Return the value."""
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
    """Decodes only the fields of a body that some expressions use, where possible.

    `record(payload)` returns an object with an attribute for each field (`access.attribute`), UNSET for a missing one.
    It returns None if the result could differ from that of `decode`: the caller then decodes the whole body.
    """

    __slots__ = ("_decode", "_has_more")

    def __init__(self, fields: Mapping[Path, bool] | None) -> None:
        """`fields` maps paths to True if the field may be more than a scalar; None if the whole body is used."""
        self._decode = None
        self._has_more = fields is not None and any(fields.values())
        # No record if one path is below another: a scalar has no fields, and other fields are decoded completely.
        if fields and not any(path[:end] in fields for path in fields for end in range(1, len(path))):
            self._decode = msgspec.json.Decoder(_record_type(fields, ())).decode

    def record(self, payload: bytes, message: Any = None) -> Any:
        """Return the record of a payload, or None. Raises EvaluationError if the budget of `message` is used up."""
        decode = self._decode
        if (
            decode is None
            or (len(payload) > FREE and not self._affords(payload, Budget() if message is None else message.budget))
            # The decoder skips fields that are not in the record, even if they are not UTF-8, have half a surrogate
            # pair or are nested too deeply.
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
        """Charge the cost of a record to the budget; return False if it might cost much more."""
        if self._has_more:
            return _charged(payload, budget) is _decode
        budget.spend(len(payload) >> 5)
        return not _has_slow_numbers(payload.translate(_NUMBERS))


def _may_have_long_number(payload: bytes) -> bool:
    """Return True if there may be 19 digits in a row: every sixth byte of these gives three digits in a row."""
    return b"000" in payload[::6].translate(_DIGITS_AS_ZEROS)


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _record_type(fields: Mapping[Path, bool], above: Path) -> Any:
    """Return the type of a record with the fields below a path."""
    depth = len(above)
    names = dict.fromkeys(path[depth] for path in fields if path[:depth] == above)
    members = []
    for name in names:
        path = (*above, name)
        kind: Any = _record_type(fields, path) | UnsetType if path not in fields else Any if fields[path] else _Scalar
        members.append((f"f_{name}", kind, UNSET))
    return msgspec.defstruct("Record", members, rename={f"f_{name}": name for name in names})


def reader_for(fields: Iterable[Mapping[Path, bool] | None]) -> BodyReader:
    """Return a reader for several expressions on the same messages, given the body fields of each."""
    together: dict[Path, bool] = {}
    for one in fields:
        if one is None:
            return WITHOUT_RECORDS
        for path, more in one.items():
            together[path] = together.get(path, False) or more
    return BodyReader(together)


WITHOUT_RECORDS = BodyReader(None)
"""A reader that makes no records, so that bodies are always decoded completely."""
