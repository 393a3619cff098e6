"""Replace Grafana's variables in queries as Grafana does, so that Prometheus and parsers can read the queries.

Source: the documentation of Grafana's Prometheus data source (`$__interval`, `$__rate_interval`, `$__range`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dashboards.frame import ANY

_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
CHOICES = ("job", "instance", "connection", "route")


@dataclass(frozen=True)
class Window:
    """The time range of a dashboard: Unix times, and durations in integer seconds."""

    start: float
    end: float
    step: int
    scrape_interval: int

    def interpolate(self, expression: str) -> str:
        """Replace every variable; those that a user chooses, by "all". Raises `ValueError` for an unknown variable."""
        values = dict.fromkeys(CHOICES, ANY) | {
            "__interval": f"{self.step}s",
            "__interval_ms": str(self.step * 1000),
            "__range": f"{round(self.end - self.start)}s",
            "__rate_interval": f"{max(self.step + self.scrape_interval, 4 * self.scrape_interval)}s",
        }

        def replace(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise ValueError(f"unknown variable {match[0]} in {expression!r}")
            return values[match[1]]

        return _VARIABLE.sub(replace, expression)
