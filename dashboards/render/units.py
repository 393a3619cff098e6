"""Format numbers as Grafana does, in the units that the dashboards use."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

_COUNT = (("", 1.0), ("K", 1e3), ("Mil", 1e6), ("Bil", 1e9))
_BYTES = (("B", 1.0), ("KiB", 1024.0), ("MiB", 1024.0**2), ("GiB", 1024.0**3))
_SECONDS = (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("hour", 3600.0), ("day", 86400.0))
_RATES = {"mps": "msg/s", "ops": "ops/s"}


def text(value: float, unit: str) -> str:
    """Return a number with its unit. Raises `ValueError` for an unknown unit."""
    if isnan(value):
        return "-"
    match unit:
        case "none" | "short":
            return _scaled(value, _COUNT)
        case "locale":
            return f"{value:,.0f}"
        case "mps" | "ops":
            return f"{_scaled(value, _COUNT)} {_RATES[unit]}"
        case "percentunit":
            return f"{_short(value * 100)}%"
        case "bytes":
            return _scaled(value, _BYTES)
        case "s" | "dtdurations":
            return "0 s" if value == 0 else _scaled(value, _SECONDS)
    raise ValueError(f"no way to write the unit {unit!r}: add it to {__name__}")


def _scaled(value: float, scales: Sequence[tuple[str, float]]) -> str:
    name, factor = scales[0]
    for name_here, factor_here in scales:
        if abs(value) >= factor_here:
            name, factor = name_here, factor_here
    return f"{_short(value / factor)} {name}".rstrip()


def _short(value: float) -> str:
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
