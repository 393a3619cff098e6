"""Count the copy of a message for a mirror apart from its message."""

from __future__ import annotations

from router_trio.message import Fate
from router_trio.outbox.operation import Operation
from router_trio.states import RouteState


class MirrorCopy:
    """The owner of a copy for a mirror: counted, and nothing else follows from its fate."""

    __slots__ = ("_route", "_template")

    def __init__(self, route: RouteState, template: str) -> None:
        self._route = route
        self._template = template
        route.mirrors_under_way += 1

    @property
    def destination(self) -> tuple[str, str]:
        """See `Delivery.destination`."""
        return self._route.name, self._template

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """See `operation.Owner`."""
        self._route.mirrors_under_way -= count
        if fate.delivered:
            self._route.delivered[self._template] += count
        else:
            self._route.mirror_failed[fate.reason or fate.name] += count

    def count_failure(self, reason: str) -> None:
        """The copy never became an operation."""
        self._route.mirrors_under_way -= 1
        self._route.mirror_failed[reason] += 1
