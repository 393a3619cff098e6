"""Dead letters: messages that a route gave up, unchanged, with headers that describe their origin and the failure.

A dead letter is an ordinary publish of its connection's outbox, which resends it until it is confirmed. Its
`Nats-Msg-Id` is derived from the position of the message in its stream, so a duplicate is recognized.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from router_trio.connection.supervisor import Connection
from router_trio.errors import MappingError, reasons
from router_trio.errors.quotes import LONGEST_TEXT, bounded, excerpt, redact
from router_trio.message import Fate
from router_trio.outbox.operation import Operation
from router_trio.protocol import framing, headers, message_ids
from router_trio.routing.delivery import Delivery, was_resent
from router_trio.routing.outlets.outlet import Outlet
from router_trio.routing.policy.retry import GivenUp
from router_trio.routing.route_plans import Destination
from router_trio.states import RouteState

PREFIX = "Router-Dead-Letter-"
"""The prefix of the headers that are added to a dead letter."""

ID_PART = b":dead"
"""The part of the id of a dead letter behind the message's id, which sets it apart from the copies of the message."""

LOST = "unknown"
"""In the subject of a dead letter in place of what can't be mapped, since the subject of the message is lost."""

FIELDS = ("Route", "Reason", "Detail", "Attempts", "Subject", "Stream", "Sequence", "Time", "Message-Id")
"""The names of those headers, without the prefix."""

OWN_LINES = headers.lines_of([PREFIX + field for field in FIELDS])
"""Matches the lines of those headers in a header block."""


class DeadLetter:
    """A dead letter that is being published: the `operation.Owner` of its publish. `report` is called with its fate."""

    __slots__ = ("_report", "dead", "delivery", "destination", "was_resent")

    def __init__(
        self,
        delivery: Delivery,
        dead: GivenUp,
        destination: tuple[str, str],
        report: Callable[[DeadLetter, Fate], None],
    ) -> None:
        self.delivery: Delivery = delivery
        self.dead: GivenUp = dead
        self.destination: tuple[str, str] = destination
        self.was_resent: bool = False
        """True if it was written more than once, so that its stream may have had it from this process."""
        self._report = report

    @property
    def from_stream(self) -> bool:
        """True if the message is from a stream, which redelivers it."""
        return self.delivery.from_stream

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        self.was_resent = was_resent(operation)
        self._report(self, fate)


class DeadLetters:
    """The destination of the dead letters of one route."""

    def __init__(self, destination: Destination, connection: Connection, state: RouteState) -> None:
        """Adds the destination to `state` and the connection, which looks up whether it would store messages."""
        self._outlet = Outlet(destination, connection)
        self._connection = connection
        self._destination = destination
        to = destination.state(state, dead_letters=True)
        state.to.append(to)
        connection.destinations.add(to)
        self._to = to

    @property
    def connection(self) -> Connection:
        """The connection of the stream that stores them."""
        return self._connection

    @property
    def reachable(self) -> bool:
        """Return True if the connection has a link, and a stream takes them as far as is known."""
        return self.unreachable is None

    @property
    def unreachable(self) -> tuple[str, str] | None:
        """Reason and detail why none can be stored at present; None if that is not known."""
        if not self._connection.connected:
            return reasons.NOT_CONNECTED, "the connection is away"
        return (reasons.NO_RESPONDERS, "no stream takes it") if self._to.is_streamless else None

    def store(self, delivery: Delivery, dead: GivenUp, report: Callable[[DeadLetter, Fate], None]) -> None:
        """Publish the dead letter of a message. `report` is called once with its fate, possibly before this returns.

        Raises `RouterError` if it can't be sent at all: no subject results, it is too large, or there is no room.
        """
        template = self._destination.template
        owner = DeadLetter(delivery, dead, (self._destination.route, template), report)
        first = message_ids.without_digits(delivery.message_id or b"") or self._connection.new_message_id()
        message_id = first + ID_PART
        block = self._headers(delivery, dead)
        target = None
        if dead.failure.reason == reasons.NO_ORIGIN and not self._maps(framing.text(delivery.raw[0])):
            target = self._of_lost_subjects
        self._outlet.forward_with(delivery.raw, owner, message_id, block, target=target)

    def _maps(self, subject: str) -> bool:
        try:
            self._destination.subject_for(subject)
        except MappingError:
            return False
        return True

    @property
    def _of_lost_subjects(self) -> bytes:
        """The subject of the dead letter of a message whose own subject is lost."""
        return framing.wire(re.sub(r"[*>]", LOST, self._destination.mapping.pattern))

    def _headers(self, delivery: Delivery, dead: GivenUp) -> bytes:
        """Return the headers of a dead letter without its id: those of the message but control headers, and our own."""
        came = framing.header_block(delivery.raw)
        origin: dict[str, Any] = delivery.origin()
        failure = dead.failure
        now = datetime.fromtimestamp(self._connection.platform.wall_clock(), UTC)
        fields: dict[str, str | None] = {
            "Route": self._destination.route,
            "Reason": failure.reason,
            "Detail": excerpt(redact(bounded(failure.detail or failure.reason)), LONGEST_TEXT),
            "Attempts": str(dead.attempts),
            "Subject": framing.text(delivery.raw[0]),
            "Stream": origin.get("stream"),
            "Sequence": str(origin["sequence"]) if "sequence" in origin else None,
            "Time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "Message-Id": message_ids.find(came).decode("utf-8", "surrogateescape") or None,
        }
        block = self._outlet.contents.without_control(headers.removed(came, OWN_LINES)) if came else b""
        lines = [(block.rstrip(b"\r\n") if block else headers.VERSION) + b"\r\n"]
        for name, value in fields.items():
            if value is not None:
                lines.append(headers.line(PREFIX + name, value))
        return b"%b\r\n" % b"".join(lines)
