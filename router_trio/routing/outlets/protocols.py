"""The views of an outlet: a message's origin, and the breaker of its destination."""

from __future__ import annotations

from typing import Protocol

from router_trio.outbox.operation import RouteOwner
from router_trio.routing.delivery import Delivery


class Origin(Protocol):
    """The origin of a message: its reply subject, and the id of its copies if it has none of its own."""

    @property
    def reply(self) -> bytes:
        """The reply subject, `b""` for none."""
        ...

    @property
    def message_id(self) -> bytes | None:
        """None if any new id will do."""


class OutletBreaker(Protocol):
    """The breaker of a destination, as who sends there sees it."""

    @property
    def closed(self) -> bool:
        """True if messages go as if there were no breaker."""
        ...

    def admits(self, now: float) -> bool:
        """Return True if a message may go there."""
        ...

    def follow(self, delivery: Delivery, copy: int) -> RouteOwner:
        """A message goes there now. Return the owner of its operation."""
        ...

    def spare(self) -> None:
        """Record that a probe was not sent after all: another one may be."""
