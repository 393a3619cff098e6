"""Convert the value of an expression to a payload or to the value of a header.

JSON is canonical: keys sorted by code points, no spaces, doubles in their shortest form and always with a fraction or
an exponent, so that a reader can distinguish an int from a double.
"""

from __future__ import annotations

from base64 import b64encode
from math import isfinite
from types import NoneType
from typing import Any

import msgspec

from router_trio.errors import EvaluationError, ResultTooLargeError
from router_trio.expressions.functions.conversions import bytes_of_string, string_of_double
from router_trio.expressions.functions.times import format_duration, format_timestamp
from router_trio.expressions.values import MAX_NESTING, BoolKey, Budget, Duration, Timestamp, Uint, Value, a_kind

_encode = msgspec.json.Encoder(order="deterministic").encode
MANY = 32
"""Maximum number of entries of a map that is checked for the fast path of `_is_plain`."""
_PLAIN = frozenset({int, bool, NoneType})


def payload_of(value: Value, largest: int, message: Any = None) -> bytes:
    """Return the payload of a value: strings and bytes as they are, timestamps and durations as text, others as JSON.

    Within JSON, bytes are base64, timestamps RFC 3339 and durations seconds, as in protobuf's JSON. Raises
    ResultTooLargeError for more than `largest` bytes, and EvaluationError for a value that JSON can't represent such as
    an infinity, and if the budget of `message` is used up.
    """
    kind = value.__class__
    if kind is str:
        payload = bytes_of_string(value)
    elif kind is bytes:
        payload = value
    elif kind is Timestamp or kind is Duration:
        payload = _text_of_time(value).encode()
    else:
        payload = json_of(value, largest, message)
    if len(payload) > largest:
        raise _too_large(largest)
    return payload


def json_of(value: Value, largest: int, message: Any = None) -> bytes:
    """Return canonical JSON.

    Raises ResultTooLargeError for more than `largest` bytes, and EvaluationError for a value that JSON can't represent
    and if the budget of `message` is used up. Without a message the value has a budget of its own.
    """
    plain = value if _is_plain(value) else _Writer(largest, message).plain(value, 0)
    try:
        encoded = _encode(plain)
    except (UnicodeEncodeError, msgspec.MsgspecError, OverflowError, TypeError):
        raise EvaluationError("the value has a string that is not valid UTF-8, which JSON can't represent") from None
    if len(encoded) > largest:
        raise _too_large(largest)
    return encoded


def _is_plain(value: Value) -> bool:
    """Return True for a small map with string keys whose values the encoder accepts without conversion.

    Fast path of `_Writer`; held equal by tests/unit/expressions/test_output.py, worth 140 instructions a message
    (tests/performance/test_fast_paths.py::test_a_small_map_that_is_written_as_it_is).
    """
    if value.__class__ is not dict or len(value) > MANY:
        return False
    for key, one in value.items():
        kind = one.__class__
        if key.__class__ is not str or (
            kind not in _PLAIN and kind is not str and not (kind is float and isfinite(one))
        ):
            return False
    return True


def header_of(value: Value, largest: int) -> str:
    """Return the value of a header: a string as it is, a number or a bool as `string()` converts it.

    Raises EvaluationError for other types and for CR, LF or NUL, and ResultTooLargeError for more than `largest` bytes.
    """
    kind = value.__class__
    if kind is str:
        text: str = value
        if "\r" in text or "\n" in text or "\0" in text:
            raise EvaluationError("the value of a header can't contain CR, LF or NUL")
        if len(text) > largest or len(bytes_of_string(text)) > largest:
            raise _too_large(largest)
        return text
    if kind is bool:
        return "true" if value else "false"
    if kind is int or kind is Uint:
        return str(value)
    if kind is float:
        return string_of_double(value)
    raise EvaluationError(f"{a_kind(value)} can't be the value of a header: convert it to a string")


def _too_large(largest: int) -> ResultTooLargeError:
    return ResultTooLargeError(f"the result is larger than {largest} bytes")


def _text_of_time(value: Timestamp | Duration) -> str:
    return format_timestamp(value) if value.__class__ is Timestamp else format_duration(value)  # type: ignore[arg-type]


class _Writer:
    """Converts values to those that the JSON encoder accepts, and stops when the result becomes too large."""

    __slots__ = ("_budget", "_largest", "_left")

    def __init__(self, largest: int, message: Any = None) -> None:
        self._largest = self._left = largest
        self._budget: Budget = Budget() if message is None else message.budget

    def plain(self, value: Value, depth: int) -> Any:
        """Return the value that the encoder accepts in place of `value`. Raises EvaluationError."""
        kind = value.__class__
        self._left -= len(value) if kind is str else 1
        if self._left < 0:
            raise _too_large(self._largest)
        if kind is str or kind in _PLAIN:
            return value
        if kind is float:
            if not isfinite(value):
                raise EvaluationError("JSON can't represent a number that is not finite")
            return value
        if kind is dict or kind is list:
            if depth >= MAX_NESTING:
                raise EvaluationError(f"the value is nested more than {MAX_NESTING} levels deep")
            self._budget.spend(10 + len(value) * (4 if kind is list else 8))
            if kind is list:
                return [self.plain(one, depth + 1) for one in value]
            return self._entries(value, depth)
        if kind is Uint:
            return int(value)
        if kind is bytes:
            self._left -= len(value)
            return b64encode(value).decode()
        if kind is Timestamp or kind is Duration:
            return _text_of_time(value)
        raise EvaluationError(f"{a_kind(value)} can't be written as JSON")

    def _entries(self, entries: dict[Value, Value], depth: int) -> dict[str, Any]:
        plain = {}
        for key, value in entries.items():
            kind = key.__class__
            if kind is not str:
                key = str(key) if kind is not BoolKey else "true" if key.value else "false"
            self._left -= len(key)
            plain[key] = self.plain(value, depth + 1)
        if len(plain) != len(entries):
            raise EvaluationError("two keys of the map are the same in JSON")
        return plain
