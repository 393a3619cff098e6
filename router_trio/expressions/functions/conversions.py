"""Conversions between types, and numbers of 64 bits."""

from __future__ import annotations

import math
import re

from router_trio.errors import EvaluationError
from router_trio.expressions.values import MAX_INT, MAX_UINT, MIN_INT, Uint

MAX_DIGITS = 400
"""Characters of a string that is read as a number."""

_INT = re.compile(r"[+-]?[0-9]+")
# Each part takes all that it can, and nothing is tried twice.
_DOUBLE = re.compile(
    r"[+-]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?|[+-]?(?:inf|infinity)|nan", re.IGNORECASE
)
_TRUE = frozenset({"true", "True", "TRUE", "t", "1"})
_LONGEST_BOOL = len("false")
_FALSE = frozenset({"false", "False", "FALSE", "f", "0"})


def checked_int(value: int) -> int:
    """Return an int. Raises EvaluationError if it takes more than 64 bits."""
    if MIN_INT <= value <= MAX_INT:
        return value
    raise overflow("int")


def checked_uint(value: int) -> Uint:
    """Return a uint. Raises EvaluationError if it is negative or takes more than 64 bits."""
    if 0 <= value <= MAX_UINT:
        return Uint(value)
    raise overflow("uint")


def overflow(kind: str) -> EvaluationError:
    """Return the error of a number that is out of range."""
    return EvaluationError(f"the result is out of range for {kind}")


def int_of_double(value: float) -> int:
    """Return the int without the fraction. Raises EvaluationError if there is none."""
    if -(2.0**63) < value < 2.0**63:
        return int(value)
    raise overflow("int")


def uint_of_double(value: float) -> Uint:
    """Return the uint without the fraction. Raises EvaluationError if there is none."""
    if 0.0 <= value < 2.0**64:
        return Uint(int(value))
    raise overflow("uint")


def int_of_string(text: str) -> int:
    """Read decimal digits, with or without a sign. Raises EvaluationError."""
    if len(text) > MAX_DIGITS or not _INT.fullmatch(text):
        raise EvaluationError("the string is no int")
    return checked_int(int(text))


def uint_of_string(text: str) -> Uint:
    """Read decimal digits. Raises EvaluationError."""
    if len(text) > MAX_DIGITS or not _INT.fullmatch(text) or text[0] == "-":
        raise EvaluationError("the string is no uint")
    return checked_uint(int(text))


def double_of_string(text: str) -> float:
    """Read a decimal number, with or without an exponent, or `inf` or `nan`. Raises EvaluationError."""
    if len(text) > MAX_DIGITS or not _DOUBLE.fullmatch(text):
        raise EvaluationError("the string is no double")
    return float(text)


def bool_of_string(text: str) -> bool:
    """Read a bool. Raises EvaluationError."""
    if len(text) <= _LONGEST_BOOL:
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
    raise EvaluationError("the string is no bool")


def string_of_double(value: float) -> str:
    """Return the shortest decimal that stands for this double, with an exponent from 1e+06 and below 1e-04 on."""
    if not math.isfinite(value):
        return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
    if value == 0.0:
        return "-0" if math.copysign(1.0, value) < 0 else "0"
    digits, _, exponent = f"{value!r}".partition("e")
    sign = "-" if digits[0] == "-" else ""
    whole, _, fraction = digits.lstrip("-").partition(".")
    if fraction == "0":
        fraction = ""
    # All digits, and the power of ten of the first one.
    power = len(whole) - 1 + int(exponent or "0")
    every = whole + fraction
    kept = every.lstrip("0")
    power -= len(every) - len(kept)
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
    """Read UTF-8. Raises EvaluationError if it is none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise EvaluationError("the bytes are no UTF-8") from None


def bytes_of_string(text: str) -> bytes:
    """Return the UTF-8 of a string; of a header that is none, the bytes that came."""
    return text.encode("utf-8", "surrogateescape")
