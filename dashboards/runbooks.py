"""Links from panels to the runbooks of the alerts on the same metrics."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.models.dashboard import DashboardLinkType

RUNBOOKS = "https://github.com/router-trio/router-trio/blob/main/docs/runbooks"


def runbook(alert: str) -> DashboardLink:
    """Return a link to the runbook of an alert."""
    link = DashboardLink(f"Runbook: {alert}").type(DashboardLinkType.LINK)
    return link.url(f"{RUNBOOKS}/{alert}.md").target_blank(True)
