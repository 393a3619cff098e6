"""All the dashboards, in the order in which they are read, and where their JSON is."""

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
    """Build all of them, by name."""
    built = (overview(), connections(), delivery(), pending(), runtime())
    return dict(zip(NAMES, built, strict=True))


def path_of(name: str) -> Path:
    """Where a dashboard's JSON is kept."""
    return DIRECTORY / f"{name}.json"
