"""Timestamps and durations: parsing and formatting, range checks, and their parts in a time zone.

Times are in nanoseconds, which `datetime` does not support.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from router_trio.errors import EvaluationError
from router_trio.expressions.values import Duration, Timestamp

SECOND = 1_000_000_000
_DAY = 86_400
MIN_TIMESTAMP = -62_135_596_800 * SECOND
MAX_TIMESTAMP = 253_402_300_800 * SECOND - 1
MAX_DURATION = 315_576_000_000 * SECOND + SECOND - 1
"""The longest duration in nanoseconds: 10,000 years of 365.25 days, as in protobuf."""
MAX_TIME_TEXT = 200
"""Maximum number of characters of a timestamp, a duration or a time zone."""
MAX_ZONES = 1024
"""Maximum number of cached time zone names, more than there are zones. Messages may name any number of invalid ones."""
ZONE_COST = 800
"""The cost of looking up a time zone that is not cached: about 60 µs."""

_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_PART = re.compile(r"([0-9]*+)(?:\.([0-9]*+))?(h|ms|m|s|us|ns)")
_UNITS = {"h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND, "ms": 1_000_000, "us": 1_000, "ns": 1}
_OFFSET = re.compile(r"([+-]?)([0-9]{1,2}):([0-9]{2})")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")


def timestamp(ns: int) -> Timestamp:
    """Return a timestamp. Raises EvaluationError if it is out of range."""
    if not MIN_TIMESTAMP <= ns <= MAX_TIMESTAMP:
        raise EvaluationError("the timestamp is out of range: it must be within the years 1 to 9999")
    return Timestamp(ns)


def duration(ns: int) -> Duration:
    """Return a duration. Raises EvaluationError if it is out of range."""
    if not -MAX_DURATION <= ns <= MAX_DURATION:
        raise EvaluationError("the duration is out of range: it must be at most 10,000 years")
    return Duration(ns)


def parse_timestamp(text: str) -> Timestamp:
    """Parse an RFC 3339 timestamp. Raises EvaluationError."""
    match = _TIMESTAMP.fullmatch(text) if len(text) <= MAX_TIME_TEXT else None
    if match is None:
        raise EvaluationError("the string is not an RFC 3339 timestamp, such as 2026-01-31T08:00:00Z")
    *parts, fraction, sign, hours, minutes = match.groups()
    try:
        year, month, day, hour, minute, second = map(int, parts)
        seconds = int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    except ValueError:
        raise EvaluationError("the string is not a timestamp: there is no such date or time") from None
    if sign:
        if int(hours) > 23 or int(minutes) > 59:
            raise EvaluationError("the string is not a timestamp: there is no such offset")
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds -= offset if sign == "+" else -offset
    return timestamp(seconds * SECOND + int((fraction or "0").ljust(9, "0")))


def format_timestamp(value: Timestamp) -> str:
    """Return a timestamp as RFC 3339 in UTC, with 0, 3, 6 or 9 fractional digits."""
    seconds, ns = divmod(value.ns, SECOND)
    days, second = divmod(seconds, _DAY)
    day = date.fromordinal(days + _EPOCH)
    time = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"{day.year:04}-{day.month:02}-{day.day:02}T{time}{_fraction(ns)}Z"


def parse_duration(text: str) -> Duration:
    """Parse a duration such as `1h30m` or `-1.5s`. Raises EvaluationError."""
    sign = text[:1]
    rest = text[1:] if sign in ("+", "-") else text
    total = at = 0
    if rest == "0":
        return Duration(0)
    while at < len(rest) <= MAX_TIME_TEXT:
        match = _PART.match(rest, at)
        if match is None or not (match[1] or match[2]):
            break
        integer, fraction, unit = match.groups()
        digits = (fraction or "")[:18]
        total += int(integer or "0") * _UNITS[unit] + int(digits or "0") * _UNITS[unit] // 10 ** len(digits)
        at = match.end()
    if not rest or at < len(rest):
        raise EvaluationError("the string is not a duration, such as 1h30m or 1.5s")
    return duration(-total if sign == "-" else total)


def format_duration(value: Duration) -> str:
    """Return a duration in seconds, with 0, 3, 6 or 9 fractional digits and the suffix `s`."""
    seconds, ns = divmod(abs(value.ns), SECOND)
    return f"{'-' if value.ns < 0 else ''}{seconds}{_fraction(ns)}s"


def _fraction(ns: int) -> str:
    if not ns:
        return ""
    digits = f"{ns:09}"
    return f".{digits[:3] if ns % 1_000_000 == 0 else digits[:6] if ns % 1_000 == 0 else digits}"


_EPOCH = date(1970, 1, 1).toordinal()


def part_of_time(name: str, value: Timestamp, zone: str = "") -> int:
    """Return the part of a timestamp that the getter `name` returns. Raises EvaluationError for an unknown zone."""
    ns = value.ns + (_offset(value, zone) * SECOND if zone else 0)
    seconds = ns // SECOND
    if name == "getMilliseconds":
        return ns % SECOND // 1_000_000
    days, second = divmod(seconds, _DAY)
    if name in _OF_THE_DAY:
        return _OF_THE_DAY[name](second)
    if name == "getDayOfWeek":
        return (days + 4) % 7
    ordinal = days + _EPOCH
    # A time zone may move a timestamp out of the years that `datetime` supports, into year 0 or 10,000.
    shift = 1 if ordinal < 1 else -1 if ordinal > _LAST else 0
    day = date.fromordinal(ordinal + shift * _CYCLE)
    if name == "getFullYear":
        return day.year - shift * 400
    if name == "getDayOfYear":
        return day.timetuple().tm_yday - 1
    return {"getMonth": day.month - 1, "getDate": day.day, "getDayOfMonth": day.day - 1}[name]


_OF_THE_DAY: dict[str, Callable[[int], int]] = {
    "getHours": lambda second: second // 3600,
    "getMinutes": lambda second: second // 60 % 60,
    "getSeconds": lambda second: second % 60,
}
_LAST = date.max.toordinal()
_CYCLE = 146_097
"""Number of days after which the calendar repeats: 400 years."""


def part_of_duration(name: str, value: Duration) -> int:
    """Return what the getter `name` returns: total hours, minutes or seconds, or milliseconds within the second."""
    size = abs(value.ns)
    if name == "getMilliseconds":
        part = size % SECOND // 1_000_000
    else:
        part = size // {"getHours": 3600 * SECOND, "getMinutes": 60 * SECOND, "getSeconds": SECOND}[name]
    return -part if value.ns < 0 else part


def _offset(value: Timestamp, zone: str) -> int:
    """Return the offset of a time zone from UTC in seconds at a given time, positive if it is ahead."""
    if len(zone) > MAX_TIME_TEXT:
        raise _no_zone()
    match = _OFFSET.fullmatch(zone)
    if match is not None:
        sign, hours, minutes = match.groups()
        if int(hours) > 23 or int(minutes) > 59:
            raise _no_zone()
        seconds = int(hours) * 3600 + int(minutes) * 60
        return -seconds if sign == "-" else seconds
    known = _zone(zone)
    if known is None:
        raise _no_zone()
    seconds = min(max(value.ns // SECOND, _FIRST_SECOND), _LAST_SECOND)
    offset = datetime.fromtimestamp(seconds, UTC).astimezone(known).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


_FIRST_SECOND = MIN_TIMESTAMP // SECOND + 2 * _DAY
_LAST_SECOND = MAX_TIMESTAMP // SECOND - 2 * _DAY


def _no_zone() -> EvaluationError:
    return EvaluationError("there is no such time zone: name one as in 'Europe/Berlin', or an offset as in '+01:00'")


_zones: dict[str, ZoneInfo | None] = {}


def zone_cost(name: str) -> int:
    """Return the cost of finding a time zone. One that is not cached is looked up on disk."""
    return 0 if name in _zones or len(name) > MAX_TIME_TEXT or _OFFSET.fullmatch(name) else ZONE_COST


def _zone(name: str) -> ZoneInfo | None:
    if name in _zones:
        return _zones[name]
    zone = None
    if _ZONE.fullmatch(name):
        with suppress(OSError, ValueError, LookupError):
            zone = ZoneInfo(name)
    while len(_zones) >= MAX_ZONES:
        del _zones[next(iter(_zones))]
    _zones[name] = zone
    return zone
