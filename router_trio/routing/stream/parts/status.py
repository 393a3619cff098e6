"""The state of one of several sources of a route."""

from __future__ import annotations

from collections.abc import Callable

from router_trio.states import STARTING, RouteState


class PartStatus:
    """The `SourceStatus` of one part. Its obstacles are those of the route, under the name of the part."""

    def __init__(self, route: RouteState, part: str, changed: Callable[[], None]) -> None:
        """`part` names it in texts. `changed` is called when it has entered another state."""
        self.name: str = route.name
        self.state: str = STARTING
        self.reason: str | None = None
        self.standby: bool = False
        self.obstacles: dict[str, str] = {}
        self._route = route
        self._part = part
        self._changed = changed

    def enter(self, state: str, reason: str | None = None) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self._changed()

    def add_obstacle(self, cause: str, why: str) -> None:
        self.obstacles[cause] = why
        self._route.add_obstacle(f"{cause} of {self._part}", f"{self._part}: {why}")

    def remove_obstacle(self, cause: str) -> None:
        self.obstacles.pop(cause, None)
        self._route.remove_obstacle(f"{cause} of {self._part}")
