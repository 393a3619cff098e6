"""Durations and sizes: how they are read, which are refused, and that each survives being written and read."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from router_trio.settings.units import (
    DURATION_PATTERN,
    LARGEST_SIZE,
    LONGEST_DURATION,
    SIZE_PATTERN,
    Duration,
    DurationForm,
    PositiveSize,
    Size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

PositiveDuration = Annotated[float, DurationForm(minimum=0.001)]

DURATIONS = {
    "0s": 0.0,
    "500ms": 0.5,
    "30s": 30.0,
    "5m": 300.0,
    "1h": 3600.0,
    "1h30m": 5400.0,
    "1h0.25s": 3600.25,
    "1m30s": 90.0,
    "0.5ms": 0.0005,
}
SIZES = {
    "0B": 0,
    "100B": 100,
    "512KiB": 512 * 1024,
    "10KB": 10_000,
    "10MB": 10_000_000,
    "64MiB": 64 * 2**20,
    "1GiB": 2**30,
    "3GB": 3 * 10**9,
    "1TiB": 2**40,
    "7TB": 7 * 10**12,
}
NO_DURATIONS = ["", "s", "5", "5 s", "5S", "-5s", "+5s", "1m1h", "5s5s", "1e3s", ".5s", "5.s", "5d", "٣s", "5s\n"]
NO_SIZES = ["", "MiB", "64mib", "64 MiB", "-1B", "1e3B", "1.5B", "5K", "٣B", "1.5", "10MB\n"]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_duration_is_read_and_written(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds", "written"),
    [("90s", 90.0, "1m30s"), ("1500ms", 1.5, "1.5s"), ("1.5h", 5400.0, "1h30m"), ("60m", 3600.0, "1h")],
)
def test_duration_has_one_written_form(text: str, seconds: float, written: str) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == written


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_bad_duration_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"500ms|write '(5s|120h)'") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


def test_a_duration_without_a_unit_is_refused_with_the_possible_units() -> None:
    with pytest.raises(ValueError, match=r"^'30' has no unit; write '30s' for seconds or '30ms' for milliseconds$"):
        parse_duration("30")


@pytest.mark.parametrize(("text", "hours"), [("1d", "24h"), ("30d", "720h")])
def test_a_duration_in_days_is_refused_with_the_same_in_hours(text: str, hours: str) -> None:
    with pytest.raises(ValueError, match=f"^'{text}' has the unit d, and the longest unit is h; write '{hours}'$"):
        parse_duration(text)
    parse_duration(hours)


@pytest.mark.parametrize("text", ["1w", "1d12h", "5 min", "soon"])
def test_anything_else_is_refused_with_all_units(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration; write a number and a unit \(h, m, s or ms\), such as"):
        parse_duration(text)


@pytest.mark.parametrize("seconds", [-0.001, float("inf"), float("nan"), LONGEST_DURATION * 1.001])
def test_impossible_duration_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="duration"):
        format_duration(seconds)


def test_absurdly_long_text_is_refused_as_a_duration() -> None:
    with pytest.raises(ValueError, match="too long"):
        parse_duration("9" * 400 + "h")


@given(st.floats(min_value=0, max_value=LONGEST_DURATION))
def test_every_duration_survives_the_round_trip(seconds: float) -> None:
    text = format_duration(seconds)
    assert parse_duration(text) == seconds
    assert re.search(DURATION_PATTERN, text)


@given(st.integers(0, 10_000), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{milliseconds}ms"
    assert parse_duration(text) == (hours * 3_600_000 + minutes * 60_000 + seconds * 1000 + milliseconds) / 1000


@given(st.text(alphabet="0123456789.hms -", max_size=12))
def test_a_duration_is_accepted_exactly_when_the_pattern_of_the_schema_matches(text: str) -> None:
    try:
        parse_duration(text)
        well_formed = True
    except ValueError as error:
        well_formed = "too long" in str(error)
    assert well_formed == bool(re.search(DURATION_PATTERN, text))


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_size_is_read_and_written(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert format_size(size) == text


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("1.5GiB", 1610612736), ("0.5KB", 500)])
def test_size_may_be_plain_bytes_or_a_fraction(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", NO_SIZES)
def test_bad_size_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole number of bytes") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_size_beyond_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="impossible"):
        parse_size(f"{LARGEST_SIZE + 1}")
    with pytest.raises(ValueError, match="impossible"):
        format_size(-1)


@given(st.integers(0, LARGEST_SIZE))
def test_every_size_survives_the_round_trip(size: int) -> None:
    text = format_size(size)
    assert parse_size(text) == size
    assert re.search(SIZE_PATTERN, text)


@pytest.mark.parametrize(
    ("kind", "text", "value"), [(Duration, "1m30s", 90.0), (PositiveDuration, "1ms", 0.001), (Size, "2KiB", 2048)]
)
def test_pydantic_reads_text_and_writes_it_to_json(kind: Any, text: str, value: float) -> None:
    adapter = TypeAdapter(kind)
    assert adapter.validate_python(text) == value
    assert adapter.validate_python(value) == value
    assert json.loads(adapter.dump_json(value)) == text
    assert adapter.dump_python(value) == value


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Duration, True, "must be a duration"),
        (Duration, None, "must be a duration"),
        (Duration, -1, "0 or more seconds"),
        (Duration, float("nan"), "0 or more seconds"),
        (Duration, float("inf"), "too long"),
        (PositiveDuration, "0s", "0s is too short; at least 1ms"),
        (Size, True, "must be a size"),
        (Size, 1.5, "must be a size"),
        (Size, -1, "impossible"),
        (PositiveSize, 0, "0B is too small; at least 1B"),
    ],
)
def test_pydantic_refuses_other_values(kind: Any, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(kind).validate_python(value)


def test_json_schema_of_a_duration_is_a_string_with_pattern_and_examples() -> None:
    schema = TypeAdapter(Duration).json_schema()
    assert schema["type"] == "string"
    assert all(re.search(schema["pattern"], example) for example in schema["examples"])
    size = TypeAdapter(Size).json_schema()
    assert size["type"] == ["string", "integer"]
    assert all(isinstance(example, int) or re.search(size["pattern"], example) for example in size["examples"])
