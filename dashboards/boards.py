"""All dashboards in reading order, and the paths of their JSON files."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.connections import connections
from dashboards.delivery import delivery
from dashboards.overview import overview
from dashboards.pending import pending
from dashboards.runtime import runtime

DIRECTORY = Path(__file__).parent
NAMES = ("overview", "connections", "delivery", "pending", "runtime")


def boards() -> dict[str, Dashboard]:
    """Build all dashboards, by name."""
    built = (overview(), connections(), delivery(), pending(), runtime())
    return dict(zip(NAMES, built, strict=True))


def path_of(name: str) -> Path:
    """Return the path of a dashboard's JSON file."""
    return DIRECTORY / f"{name}.json"
