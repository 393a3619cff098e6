"""Conversions between types, and range checks of 64-bit numbers."""

from __future__ import annotations

import math
import re

from router_trio.errors import EvaluationError
from router_trio.expressions.values import MAX_INT, MAX_UINT, MIN_INT, Uint

MAX_DIGITS = 400
"""Maximum number of characters of a string that is converted to a number."""

_INT = re.compile(r"[+-]?[0-9]+")
# Possessive quantifiers, so that matching never backtracks.
_DOUBLE = re.compile(
    r"[+-]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?|[+-]?(?:inf|infinity)|nan", re.IGNORECASE
)
_TRUE = frozenset({"true", "True", "TRUE", "t", "1"})
_LONGEST_BOOL = len("false")
_FALSE = frozenset({"false", "False", "FALSE", "f", "0"})


def checked_int(value: int) -> int:
    """Return an int unchanged. Raises EvaluationError if it does not fit into 64 bits."""
    if MIN_INT <= value <= MAX_INT:
        return value
    raise overflow("int")


def checked_uint(value: int) -> Uint:
    """Return a number as a uint. Raises EvaluationError if it is negative or does not fit into 64 bits."""
    if 0 <= value <= MAX_UINT:
        return Uint(value)
    raise overflow("uint")


def overflow(kind: str) -> EvaluationError:
    """Return the error for a number that is out of range."""
    return EvaluationError(f"the result is out of range for {kind}")


def int_of_double(value: float) -> int:
    """Convert a double to an int, without its fraction. Raises EvaluationError if it is out of range."""
    if -(2.0**63) < value < 2.0**63:
        return int(value)
    raise overflow("int")


def uint_of_double(value: float) -> Uint:
    """Convert a double to a uint, without its fraction. Raises EvaluationError if it is out of range."""
    if 0.0 <= value < 2.0**64:
        return Uint(int(value))
    raise overflow("uint")


def int_of_string(text: str) -> int:
    """Parse decimal digits with an optional sign. Raises EvaluationError."""
    if len(text) > MAX_DIGITS or not _INT.fullmatch(text):
        raise EvaluationError("the string is not an int")
    return checked_int(int(text))


def uint_of_string(text: str) -> Uint:
    """Parse decimal digits. Raises EvaluationError."""
    if len(text) > MAX_DIGITS or not _INT.fullmatch(text) or text[0] == "-":
        raise EvaluationError("the string is not a uint")
    return checked_uint(int(text))


def double_of_string(text: str) -> float:
    """Parse a decimal number with an optional exponent, or `inf` or `nan`. Raises EvaluationError."""
    if len(text) > MAX_DIGITS or not _DOUBLE.fullmatch(text):
        raise EvaluationError("the string is not a double")
    return float(text)


def bool_of_string(text: str) -> bool:
    """Parse a bool. Raises EvaluationError."""
    if len(text) <= _LONGEST_BOOL:
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
    raise EvaluationError("the string is not a bool")


def string_of_double(value: float) -> str:
    """Return the shortest decimal for a double, with an exponent if it is at least 1e+06 or less than 1e-04."""
    if not math.isfinite(value):
        return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
    if value == 0.0:
        return "-0" if math.copysign(1.0, value) < 0 else "0"
    digits, _, exponent = f"{value!r}".partition("e")
    sign = "-" if digits[0] == "-" else ""
    integer, _, fraction = digits.lstrip("-").partition(".")
    if fraction == "0":
        fraction = ""
    # `power` is the power of ten of the first digit.
    power = len(integer) - 1 + int(exponent or "0")
    padded = integer + fraction
    kept = padded.lstrip("0")
    power -= len(padded) - len(kept)
    kept = kept.rstrip("0")
    if power < -4 or power >= 6:
        tail = f".{kept[1:]}" if len(kept) > 1 else ""
        return f"{sign}{kept[0]}{tail}e{'-' if power < 0 else '+'}{abs(power):02}"
    if power < 0:
        return f"{sign}0.{'0' * (-power - 1)}{kept}"
    kept = kept.ljust(power + 1, "0")
    tail = f".{kept[power + 1 :]}" if len(kept) > power + 1 else ""
    return f"{sign}{kept[: power + 1]}{tail}"


def string_of_bytes(value: bytes) -> str:
    """Decode UTF-8. Raises EvaluationError if the bytes are not valid UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise EvaluationError("the bytes are not valid UTF-8") from None


def bytes_of_string(text: str) -> bytes:
    """Encode a string as UTF-8. The value of a header that is not valid UTF-8 gives the bytes received."""
    return text.encode("utf-8", "surrogateescape")
