"""The state of a source: that of its route or, if the route has several sources, that of its part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class SourceStatus(Protocol):
    """Takes the state of one source. The `RouteState` of a route with a single source is one."""

    @property
    def name(self) -> str:
        """The name of the route."""
        ...

    @property
    def state(self) -> str:
        """The state that was entered last."""
        ...

    standby: bool
    """True while the source waits for the lead of its consumer."""

    @property
    def obstacles(self) -> Mapping[str, str]:
        """Why the source would not work although it runs, by what is hindered."""
        ...

    def enter(self, state: str, reason: str | None = None) -> None:
        """Change the state; `reason` is why the source isn't running."""

    def add_obstacle(self, cause: str, why: str) -> None:
        """Record that `cause` hinders the source, in place of what was recorded for it before."""

    def remove_obstacle(self, cause: str) -> None:
        """Record that `cause` hinders the source no longer, if it did."""
