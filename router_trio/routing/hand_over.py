"""Messages that a route from a subject hands over to its successor, with what is known of those that failed.

Not in a module that may be compiled: plain core routes do not wait for the imports of the annotations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from router_trio.protocol.framing import RawMessage
    from router_trio.routing.policy.failed_messages import Failed
    from router_trio.routing.policy.retry import Failure


class Begun(NamedTuple):
    """The knowledge that one generation of a route hands over of a message that failed and is retried.

    `message_id` is that of its copies, `known` the number of its failures, its delivered copies, and its choices.
    `failure` is the last one, None if the next attempt was due, and `due` the time of that. `when` is the condition by
    which the route accepted the message.
    """

    message_id: bytes
    known: Failed
    failure: Failure | None
    due: float
    when: str | None


_PLACES = 1 << 48
"""More places than one generation of a route uses."""


class Batch(NamedTuple):
    """Messages that were received together, and when.

    A route that keeps each message hands it over alone, with its `place` there, and with what it knows of it if it was
    `begun`. Such a route hands over those that fail later one by one.
    """

    received_at: float
    messages: list[RawMessage]
    begun: Begun | None = None
    place: int | None = None

    def for_later(self, generations: int) -> Batch:
        """Return it with its place that number of generations later, before all messages that these receive."""
        return self if self.place is None else self._replace(place=self.place - generations * _PLACES)


Batches = list[Batch]
"""Batches that a route hands over, the oldest first."""
