"""Choose the format of `/metrics` by the `Accept` header of a scrape."""

from __future__ import annotations

from collections.abc import Iterable

from router_trio.telemetry.metrics.metric import Form

_OPENMETRICS = "application/openmetrics-text"
_VERSIONS = ("", "0.0.1", "1.0.0")
"""Versions of OpenMetrics whose readers understand 1.0.0; the first stands for a client that names none."""

_TEXT = ("text/plain", "text/*", "*/*")


def accepted_form(accept: Iterable[str]) -> Form:
    """Return the format that a client prefers: OpenMetrics only if it names that, and nothing else before it."""
    openmetrics = text = 0.0
    for media_range in ",".join(accept).split(","):
        kind, *parameters = (part.strip().lower() for part in media_range.split(";"))
        values = dict(part.split("=", 1) for part in parameters if "=" in part)
        quality = _quality(values.get("q", "1"))
        if kind == _OPENMETRICS and values.get("version", "").strip('"') in _VERSIONS:
            openmetrics = max(openmetrics, quality)
        elif kind in _TEXT:
            text = max(text, quality)
    return "openmetrics" if openmetrics > 0 and openmetrics >= text else "text"


def _quality(text: str) -> float:
    """Return the weight of a media range, 0 if it is not a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
