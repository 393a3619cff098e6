"""Parse and format durations, sizes and rates as people write them: `500ms`, `1h30m`, `64MiB`, `500/s`.

A bare number in a configuration file is ambiguous, so text must have a unit; inside the program a duration is a float
of seconds and a size an int of bytes. Formatting is the exact inverse of parsing: for every value
`parse_duration(format_duration(x)) == x`, and the same for sizes and rates.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic_core import CoreSchema, core_schema

from router_trio.errors.quotes import quoted

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

# About 31 years. A longer duration is a mistake, and would overflow the nanoseconds of the JetStream API.
LONGEST_DURATION = 1e9
# The server counts bytes in signed 64-bit numbers.
LARGEST_SIZE = 2**63 - 1

_HOUR = Decimal(3600)
_MINUTE = Decimal(60)
_MILLISECOND = Decimal("0.001")

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
DURATION_PATTERN = rf"^(?=[0-9])(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?$"
_DURATION = re.compile(rf"(?=[0-9])(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?(?:({_NUMBER})ms)?")
_DURATION_SCALES = (_HOUR, _MINUTE, Decimal(1), _MILLISECOND)

MOST_MESSAGES = 10**9
"""Maximum number of messages in a rate: more than any machine routes in an hour."""

FEW_DURATIONS = 64
"""Durations that are remembered: thousands of routes have the same ones."""

_RATE_UNITS = {"s": 1, "m": 60, "h": 3600}
RATE_PATTERN = r"^[1-9][0-9]*/[smh]$"
_RATE = re.compile(r"([0-9]+)/([smh])")

_SIZE_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
SIZE_PATTERN = rf"^{_NUMBER}(?:{'|'.join(_SIZE_UNITS)})$|^[0-9]+$"
_SIZE = re.compile(rf"({_NUMBER})({'|'.join(_SIZE_UNITS)})|([0-9]+)")


@lru_cache(maxsize=FEW_DURATIONS)
def parse_duration(text: str) -> float:
    """Parse a duration into seconds: hours, minutes, seconds and milliseconds, in this order.

    Each part may have decimals (`1.5s`). Raises ValueError, with the text and the valid form, for anything else.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        if re.fullmatch(_NUMBER, text):
            raise ValueError(f"{quoted(text)} has no unit; write '{text}s' for seconds or '{text}ms' for milliseconds")
        if days := re.fullmatch("([0-9]{1,5})d", text):
            raise ValueError(f"{quoted(text)} has the unit d, and the longest unit is h; write '{24 * int(days[1])}h'")
        raise ValueError(
            f"{quoted(text)} is not a duration; write a number and a unit (h, m, s or ms), "
            "such as '500ms', '30s', '5m' or '1h30m'"
        )
    parts = zip(found.groups(), _DURATION_SCALES, strict=True)
    return _checked_duration(float(sum(Decimal(part) * scale for part, scale in parts if part is not None)))


def format_duration(seconds: float) -> str:
    """Format a duration with the fewest units: `90.0` gives `1m30s`, `0.25` gives `250ms`.

    Raises ValueError for a negative or infinite duration, or one over 10^9 seconds.
    """
    rest = Decimal(repr(_checked_duration(seconds)))
    if rest == 0:
        return "0s"
    if rest < 1:
        return f"{_plain(rest / _MILLISECOND)}ms"
    hours, rest = divmod(rest, _HOUR)
    minutes, rest = divmod(rest, _MINUTE)
    parts = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{_plain(number)}{unit}" for number, unit in parts if number)


def parse_size(text: str) -> int:
    """Parse a size into bytes: `64MiB` uses powers of 1024, `10MB` powers of 1000, a bare number is bytes.

    Raises ValueError, with the text and the valid form, for anything else.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{quoted(text)} is not a size; write a number and a unit, such as '512KiB', '64MiB' or '10MB'"
        )
    number, unit, plain = found.groups()
    size = Decimal(plain) if plain else Decimal(number) * _SIZE_UNITS[unit]
    if size != size.to_integral_value():
        raise ValueError(f"{quoted(text)} is not a whole number of bytes")
    return _checked_size(int(size))


def format_size(size: int) -> str:
    """Format a size in the unit that gives the smallest whole number: `67108864` gives `64MiB`.

    Raises ValueError for a negative size or one beyond 64 bits.
    """
    _checked_size(size)
    scales = ((scale, unit) for unit, scale in _SIZE_UNITS.items() if size % scale == 0 and (size or scale == 1))
    scale, unit = max(scales)
    return f"{size // scale}{unit}"


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate: `messages` in `seconds`."""

    messages: int
    seconds: int


def parse_rate(text: str) -> Rate:
    """Parse a rate: a whole number of messages per second, minute or hour.

    Raises ValueError, with the text and the valid form, for anything else.
    """
    found = _RATE.fullmatch(text)
    if found is None:
        if re.fullmatch("[0-9]+", text):
            raise ValueError(f"{quoted(text)} has no unit; write '{text}/s', '{text}/m' or '{text}/h'")
        if re.fullmatch(rf"[0-9]+\.[0-9]+/[{''.join(_RATE_UNITS)}]", text):
            raise ValueError(f"{quoted(text)} is no whole number of messages; write '0.5/s' as '30/m'")
        raise ValueError(
            f"{quoted(text)} is not a rate; write messages and a unit of time, such as '500/s', '30000/m' or '10/h'"
        )
    return _checked_rate(Rate(int(found[1]), _RATE_UNITS[found[2]]))


def format_rate(rate: Rate) -> str:
    """Format a rate: `Rate(500, 1)` gives `500/s`. Raises ValueError if the rate has no such form."""
    _checked_rate(rate)
    unit = {seconds: unit for unit, seconds in _RATE_UNITS.items()}.get(rate.seconds)
    if unit is None:
        raise ValueError(f"a rate in {rate.seconds} seconds can't be written; count in a second, a minute or an hour")
    return f"{rate.messages}/{unit}"


def _checked_rate(rate: Rate) -> Rate:
    if not 1 <= rate.messages <= MOST_MESSAGES:
        raise ValueError(f"a rate of {rate.messages} messages is impossible; it must be from 1 to {MOST_MESSAGES:,}")
    return rate


def _plain(number: Decimal) -> str:
    # Decimal switches to exponents by itself, but 1E+1m is not a duration.
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _checked_duration(seconds: float) -> float:
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"{seconds!r} is not a duration; it must be 0 or more seconds")
    if seconds > LONGEST_DURATION:
        raise ValueError(f"a duration of {seconds:.6g} seconds is too long; at most {LONGEST_DURATION:,.0f}")
    return float(seconds)


def _checked_size(size: int) -> int:
    if not 0 <= size <= LARGEST_SIZE:
        raise ValueError(f"a size of {size} bytes is impossible; it must be from 0 to {LARGEST_SIZE}")
    return size


@dataclass(frozen=True, slots=True)
class DurationForm:
    """Tells pydantic that a float field is a duration: text in, seconds inside, text out in JSON."""

    minimum: float = 0.0
    or_zero: bool = False

    def read(self, value: object) -> float:
        """Convert a text or, in code, a number of seconds into seconds. Raises ValueError."""
        if isinstance(value, str):
            seconds = parse_duration(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            seconds = _checked_duration(value)
        else:
            raise ValueError("must be a duration, such as '500ms', '30s', '5m' or '1h30m'")
        if seconds < self.minimum and not (self.or_zero and seconds == 0):
            zero = ", or 0s" if self.or_zero else ""
            least = format_duration(self.minimum)
            raise ValueError(f"{format_duration(seconds)} is too short; at least {least}{zero}")
        return seconds

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(format_duration, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": DURATION_PATTERN, "examples": ["500ms", "30s", "5m", "1h30m"]}


@dataclass(frozen=True, slots=True)
class SizeForm:
    """Tells pydantic that an int field is a size: text or bytes in, bytes inside, text out in JSON."""

    minimum: int = 0

    def read(self, value: object) -> int:
        """Convert a text or a whole number of bytes into bytes. Raises ValueError."""
        if isinstance(value, str):
            size = parse_size(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            size = _checked_size(value)
        else:
            raise ValueError("must be a size, such as '512KiB', '64MiB' or '10MB'")
        if size < self.minimum:
            raise ValueError(f"{format_size(size)} is too small; at least {format_size(self.minimum)}")
        return size

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(format_size, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "type": ["string", "integer"],
            "pattern": SIZE_PATTERN,
            "minimum": self.minimum,
            "examples": ["512KiB", "64MiB", "10MB", 1048576],
        }


@dataclass(frozen=True, slots=True)
class RateForm:
    """Tells pydantic that a `Rate` field is text in a file and in JSON."""

    def read(self, value: object) -> Rate:
        """Convert a text or a `Rate` into a rate. Raises ValueError."""
        if isinstance(value, Rate):
            format_rate(value)  # raises for rates that can't be written
            return value
        if not isinstance(value, str):
            raise ValueError("must be a rate in quotes, such as '500/s', '30000/m' or '10/h'")
        return parse_rate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(format_rate, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": RATE_PATTERN, "examples": ["500/s", "30000/m", "10/h"]}


Duration = Annotated[float, DurationForm()]
Size = Annotated[int, SizeForm()]
PositiveSize = Annotated[int, SizeForm(minimum=1)]
