"""The sections of a route: its source, the messages that it selects, and its destinations."""

from __future__ import annotations

from router_trio.settings.routes.destination import DestinationSettings
from router_trio.settings.routes.destinations.keys import MAX_WEIGHT, HeaderSettings
from router_trio.settings.routes.flow import BreakerSettings, LimitSettings
from router_trio.settings.routes.route import MAX_CONCURRENCY, RouteSettings, Strategy
from router_trio.settings.routes.source import SourceSettings

__all__ = [
    "MAX_CONCURRENCY",
    "MAX_WEIGHT",
    "BreakerSettings",
    "DestinationSettings",
    "HeaderSettings",
    "LimitSettings",
    "RouteSettings",
    "SourceSettings",
    "Strategy",
]
