"""What of the settings each worker gets. Pure."""

from __future__ import annotations

from router_trio.settings import Settings
from router_trio.settings.checks.flow import limit_of_worker


def of_worker(settings: Settings) -> Settings:
    """Return what each of the workers runs with: its part of the limits, and no HTTP side of its own."""
    workers = settings.router.workers
    routes = [
        route if route.limit is None else route.model_copy(update={"limit": limit_of_worker(route.limit, workers)})
        for route in settings.routes
    ]
    telemetry = settings.telemetry.model_copy(update={"listen": "", "allowed_hosts": []})
    return settings.model_copy(update={"routes": routes, "telemetry": telemetry})
