"""Makes the page of limits: `limits.in` has its text, the code its numbers and the names of what they limit.

A row of `limits.in` names a constant as `{file NAME unit}` or a setting as `{section.key unit}`. On the page that
becomes two cells: the value, as people write it, and the name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from router_trio.settings.retry import RetrySettings
from router_trio.settings.routes import SourceSettings
from router_trio.settings.sections import ConnectionSettings, RouterSettings, Section, TelemetrySettings

TEXT = Path(__file__).parent / "limits.in"
SECTIONS: dict[str, Section] = {
    "router": RouterSettings(),
    "telemetry": TelemetrySettings(),
    "connections.*": ConnectionSettings(),
    "routes.from": SourceSettings(subject="a"),
    "routes.retry": RetrySettings(),
}
"""Sections whose settings are limits, with their defaults."""

_PLACE = re.compile(r"\{(?:([\w/]+\.py) (\w+)|([\w.*]+))(?: (s|bytes|characters|a second))?( \(no limit\))?\}")


@dataclass(frozen=True)
class Limit:
    """A constant with its file, or the key of a setting and no file."""

    name: str
    file: str
    unit: str
    note: str

    def __str__(self) -> str:
        return f"{self.name} {self.file}".strip()

    @property
    def value(self) -> float | int:
        """Its value, from the code."""
        if self.file:
            module = self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            return getattr(importlib.import_module(f"router_trio.{module}"), self.name)  # type: ignore[no-any-return]
        section, _, key = self.name.rpartition(".")
        return getattr(SECTIONS[section], key)  # type: ignore[no-any-return]

    @property
    def cells(self) -> str:
        """The value and the name, as the page has them."""
        name = f"`{self.name}` `{self.file}`" if self.file else f"`{self.name}`"
        return f"{written(self.value, self.unit)}{self.note} | {name}"


def limits() -> Iterator[Limit]:
    """Yield the limits that `limits.in` names, in its order."""
    for found in _PLACE.finditer(TEXT.read_text(encoding="utf-8")):
        yield _limit(found)


def lines() -> list[str]:
    """Return the lines of the page."""
    text = _PLACE.sub(lambda found: _limit(found).cells, TEXT.read_text(encoding="utf-8"))
    return ["# Limits", *text.splitlines()]


def _limit(found: re.Match[str]) -> Limit:
    file, constant, setting, unit, note = found.groups(default="")
    return Limit(constant or setting, file, unit, note)


def written(value: float | int, unit: str) -> str:
    """Return a value with its unit: `64 MiB`, `250 ms`, `1 h`, `4,096 characters`."""
    if unit == "bytes":
        for factor, name in ((1024**2, "MiB"), (1024, "KiB")):
            if value >= factor and value % factor == 0:
                return f"{value // factor:,} {name}"
    if unit == "s" and 0 < value < 1:
        return f"{value * 1000:g} ms"
    if unit == "s" and value >= 3600 and value < 1e6 and value % 3600 == 0:
        return f"{value / 3600:g} h"
    if isinstance(value, int) and value >= 2**62:
        return f"2^{(value + 1).bit_length() - 1} - 1"
    number = f"{value:,.0f}" if value == int(value) else f"{value:g}"
    return f"{number} {unit}".strip()
