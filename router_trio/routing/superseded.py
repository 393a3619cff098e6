"""Keep values that have waited for their next attempt from replacing newer ones in a KV bucket.

Later messages do not wait for one that is scheduled. So before it is routed, the newest message of its subject is read
in its own stream. If that is a later one, the bucket has its value or gets it, and the one that has waited is filtered.

Routes between two buckets compare their values instead: see `newest.py`.
"""

from __future__ import annotations

from router_trio.connection.supervisor import Connection
from router_trio.errors import LinkError, SourceError, reasons
from router_trio.outbox.operation import Operation
from router_trio.protocol import framing
from router_trio.routing.delivery import Delivery
from router_trio.routing.newest import ask, not_compared
from router_trio.routing.pipeline import Routing
from router_trio.routing.stream.delivery import StreamDelivery


class SupersededCheck:
    """Compares due retries of one route with the newest messages of their subjects."""

    def __init__(self, routing: Routing, here: Connection) -> None:
        """`here` is the connection of the route's stream."""
        self._routing = routing
        self._here = here
        source = routing.plan.settings.source
        self._stream = source.kind.stream(source) or ""

    def needs(self, delivery: Delivery) -> bool:
        """Return True if a message has waited for this attempt."""
        return isinstance(delivery, StreamDelivery) and delivery.has_waited

    def doubt(self, delivery: Delivery, template: str, operation: Operation) -> bool:
        """Return False: a copy whose id its stream has already is stored."""
        return False

    async def check_expiry(self) -> None:
        """Do nothing: the values of the route's stream are no values of a bucket, or go through a handler."""

    async def route(self, delivery: Delivery) -> None:
        """Route a message, unless its stream has a later one of its subject. It fails if that can't be read.

        If the link is lost meanwhile, nothing is sent, and the message waits for the next link. Can be cancelled: then
        nothing was sent.
        """
        routing, handler = self._routing, self._routing.plan.handler
        assert isinstance(delivery, StreamDelivery), "only messages from a stream can wait in another one"
        subject = framing.text(delivery.raw[0])
        try:
            newest = await ask(self._here, lambda link: link.newest(self._stream, subject))
        except (LinkError, SourceError) as error:
            routing.trace_if_sampled(delivery)
            not_compared(routing, delivery, error)
            return
        later = newest is not None and newest.time_ns >= delivery.stored_at
        if newest is not None and later and newest.sequence > delivery.place_in_stream:
            routing.trace_if_sampled(delivery)
            routing.filter_out(delivery, reasons.OLDER)
            delivery.done()
        elif handler is not None:
            await routing.route(handler, delivery)
        else:
            routing.trace_if_sampled(delivery)
            routing.forward(delivery)
