"""A durable pull consumer in memory, with explicit acks: who waits, what is delivered again and when.

Synchronous, and the caller gives the time. Pull requests are served in the order in which they came, and what is due
again goes before what is new. Follows nats-server in what each status says; the statuses end a request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from router_trio.errors import SourceError, reasons
from router_trio.link import LEAD_ENDS_AFTER, ConsumerSpec, ConsumerState, Progress
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import RawMessage, delivered_size
from router_trio.protocol.headers import replace as replace_header
from router_trio.protocol.stream_config import StreamSubjects
from router_trio.subjects.patterns import matches
from router_trio.testing.frames import raw, status
from router_trio.testing.losses import Losses
from router_trio.testing.streams import Stream

Receive = Callable[[RawMessage], None]


@dataclass(eq=False, slots=True)
class _Request:
    inbox: bytes
    receive: Receive
    remaining: int
    bytes: float
    deadline: float
    heartbeat: float
    next_beat: float
    pin: str | None = None


@dataclass(slots=True)
class _Unacked:
    deliveries: int
    due: float


class Consumer:
    """A durable consumer of one stream. A new one starts where its spec says, if that means this very stream."""

    def __init__(self, spec: ConsumerSpec, stream: Stream, losses: Losses) -> None:
        resumes = spec.start_sequence is not None and spec.stream_created is not None and not stream.differs(spec)
        self.spec: ConsumerSpec = spec
        self.deleted: bool = False
        self.headers_only = False
        self.is_fixed = False
        self.paused_until: float = -inf
        self._pin: str | None = None
        self._pins = 0
        self._lead_until = -inf
        self._losses = losses
        self._stream = stream
        self._requests: deque[_Request] = deque()
        self._matching: list[int] = []
        again = spec.stream_created is not None
        self.began: str = "" if resumes or (again and spec.deliver == "new") else spec.deliver
        """Where the consumer began, as `link.Limits` has it."""
        self._first = (spec.start_sequence or 1) if resumes else stream.first_since(self.began)
        self._next_to_scan = self._first
        self._position = 0
        self._unacked: dict[int, _Unacked] = {}
        # Never later than the earliest `due` among the unacked: spares a look at all of them at every poll.
        self._earliest = inf
        self._sequence = 0
        self.answers: int = 0
        """How often somebody said what becomes of a delivery, or that they work on what was delivered."""
        self._lifted: Sequence[str] = ()

    @property
    def stream_created(self) -> str:
        """The time at which its stream was made: it belongs to that incarnation."""
        return self._stream.created

    def differs(self, spec: ConsumerSpec) -> str | None:
        """Return how the stream contradicts what the spec knows of it: see `streams.Stream.differs`."""
        return self._stream.differs(spec)

    @property
    def stream_subjects(self) -> tuple[str, ...]:
        """The subjects that its stream takes."""
        return self._stream.subjects

    @property
    def stream_stores(self) -> StreamSubjects:
        """The subjects that the stream takes and stores: see `streams.Stream.stores`."""
        return self._stream.stores

    @property
    def progress(self) -> Progress:
        """The position of the consumer."""
        delivered = self._matching[self._position - 1] if self._position else self._first - 1
        passed = min(min(self._unacked, default=delivered + 1) - 1, len(self._stream.stored))
        return Progress(self._sequence, bool(self._requests), passed)

    def state_at(self, now: float) -> ConsumerState:
        """Return how it is, at that time."""
        self._look_at_stream()
        return ConsumerState(
            paused="it is paused on the server; resume it" if now < self.paused_until else None,
            unacked=len(self._unacked),
            max_ack_pending=self.spec.max_ack_pending,
            delivered=self._matching[self._position - 1] if self._position else 0,
            undelivered=len(self._matching) - self._position,
            deliveries=self._sequence,
            passed=self.progress.passed,
            cut_off="its durable is not available: its server is cut off" if self._stream.cut_off else None,
        )

    def left_unacked(self) -> list[int]:
        """Return what was delivered and has no ack, in order."""
        return sorted(self._unacked)

    def gone(self, awaited: Mapping[int, bytes], now: float) -> list[int] | SourceError:
        """Return which of these are never delivered again; an error if nobody can tell now."""
        if self.deleted or now < self._stream.leaderless_until:
            return SourceError("the consumer can't be asked now", reason=reasons.JETSTREAM_UNAVAILABLE)
        stored = self._stream.stored
        ahead = self._matching[self._position :]
        return [
            one
            for one, time in awaited.items()
            if one > len(stored)
            or (time and int(time) != stored[one - 1].timestamp)
            or (one not in self._unacked and one not in ahead)
        ]

    def pull(
        self,
        inbox: bytes,
        receive: Receive,
        batch: int,
        now: float,
        *,
        expires: float,
        max_bytes: int = 0,
        heartbeat: float = inf,
        pin: str | None = None,
    ) -> None:
        """Add a pull request, good for `expires` seconds, with a sign of life every `heartbeat` seconds if idle.

        It brings at most `batch` messages, of together at most `max_bytes` unless that is 0.

        A deleted consumer answers like a server that has no such subject.
        """
        if self.deleted or now < self._stream.leaderless_until:
            receive(status(inbox, "503"))
            return
        if self.spec.standby and (pin != self._pin or now >= self._lead_until):
            receive(status(inbox, "423 Nats-Wrong-Pin-Id"))
            return
        self.keep_pin(pin, now)
        request = _Request(inbox, receive, batch, max_bytes or inf, now + expires, heartbeat, now + heartbeat, pin)
        self._losses.meets("pull", now, lambda: self._requests.append(request))

    def take_pin(self, pin: str | None, now: float) -> str | None:
        """Return the pin if it is the one that holds, or a new one if none does; None if another one has the lead."""
        if now >= self._lead_until:
            self._pins += 1
            self._pin = f"pin{self._pins}"
        elif pin != self._pin:
            return None
        self._lead_until = now + LEAD_ENDS_AFTER
        return self._pin

    def keep_pin(self, pin: str | None, now: float) -> None:
        """Keep the lead if this pin holds."""
        if pin == self._pin:
            self._lead_until = now + LEAD_ENDS_AFTER

    def drop_pin(self, pin: str | None, now: float) -> None:
        """Give up the lead."""
        if pin == self._pin:
            self._lead_until = now

    def remove_requests(self, receive: Receive) -> None:
        """Forget the pull requests of somebody who is gone."""
        self._requests = deque(request for request in self._requests if request.receive != receive)

    def strand_requests(self, receive: Receive) -> None:
        """Keep the pull requests of a link that is dead and half-open: nobody hears what they bring."""
        for request in self._requests:
            if request.receive == receive:
                request.receive, request.next_beat, request.heartbeat = _nobody, inf, inf

    def ack(self, sequence: int) -> bool:
        """Ack a message. Return True if it was unacked; else nothing is done, as by a server."""
        self.answers += 1
        if self.deleted or sequence not in self._unacked:
            return False
        del self._unacked[sequence]
        return True

    def nak(self, sequence: int, due: float) -> None:
        """Deliver the message again from that time on."""
        self.answers += 1
        if sequence in self._unacked:
            self._postpone(self._unacked[sequence], due)

    def say_at_work(self, now: float) -> None:
        """Let whoever listens hear a sign of work, unless it is lost on its way: it acks no message."""
        self._losses.meets("in_progress", now, lambda: self.extend_ack_wait(0, now))

    def extend_ack_wait(self, sequence: int, now: float) -> None:
        """The ack wait of the message starts anew."""
        self.nak(sequence, now + self.spec.ack_wait)

    def again(self, sequences: Sequence[int], now: float) -> None:
        """Deliver these again before anything new; those that aren't unacked are ignored."""
        for sequence in sequences:
            self.nak(sequence, now)

    def take_by_hand(self, count: int, *, ack: bool) -> None:
        """Give the next messages to somebody else, who acks them or not."""

        def receive(message: RawMessage) -> None:
            if ack and message[1]:
                self.ack(int(ack_reply.tokens(message[1])[ack_reply.SEQUENCE]))

        self._requests.appendleft(_Request(b"hand", receive, count, inf, inf, inf, inf))

    def redeliver_by_hand(self, count: int, now: float) -> list[int]:
        """Deliver so many of the unacked messages to somebody else, who does not ack them. Return which.

        Of fewer, the deliveries that are left are of messages that are gone from the stream.
        """
        taken = self.left_unacked()[:count]
        if taken:
            request = _Request(b"hand", _nobody, len(taken) + 1, inf, inf, inf, inf)
            self._requests.appendleft(request)
            for sequence in taken:
                self._deliver(sequence, now)
            self._requests.remove(request)
        self._sequence += count - len(taken)
        return taken

    def delete(self) -> None:
        """End all requests: nothing is delivered any more."""
        self.deleted = True
        self.end_requests("409 Consumer Deleted")

    def end_requests(self, why: str) -> None:
        """Tell whoever waits that nothing comes for this request."""
        for request in self._requests:
            request.receive(status(request.inbox, why))
        self._requests.clear()

    def reset(self, sequence: int) -> None:
        """Go on with the first message from that one on; nothing that was delivered waits for an ack any more."""
        self._look_at_stream()
        self._position = bisect_left(self._matching, sequence)
        self._unacked.clear()
        self._earliest, self._sequence = inf, 0

    def lift(self, max_deliver: int) -> None:
        """Change the limit of deliveries as a router does, and remember how it was for `take_lifted`."""
        self._lifted = [f"max_deliver = {self.spec.max_deliver}"]
        self.edit(max_deliver=max_deliver)

    def take_lifted(self) -> Sequence[str]:
        """Return once what `lift` has changed."""
        lifted, self._lifted = self._lifted, ()
        return lifted

    def edit(self, **changes: Any) -> None:
        """Change fields of its spec, as an administrator would. What is delivered already keeps its ack wait."""
        self.spec = replace(self.spec, **changes)

    def went_back(self) -> None:
        """The stream has forgotten its last messages: what is delivered of them is delivered no more."""
        last = len(self._stream.stored)
        self._matching = [sequence for sequence in self._matching if sequence <= last]
        self._position = min(self._position, len(self._matching))
        self._next_to_scan = min(self._next_to_scan, last + 1)
        self._unacked = {sequence: entry for sequence, entry in self._unacked.items() if sequence <= last}

    def poll(self, now: float) -> None:
        """End the requests whose time is over, deliver what can be delivered, give signs of life."""
        self._expire_requests(now)
        self._look_at_stream()
        stream = self._stream
        if now >= max(self.paused_until, stream.leaderless_until):
            self.paused_until = stream.leaderless_until = -inf
            self._deliver_what_is_due(now)
        self._beat(now)

    def _deliver_what_is_due(self, now: float) -> None:
        due = self._due(now)
        while due and self._has_request(due[0], self._position):
            self._deliver(due.popleft(), now)
        while self._position < len(self._matching) and self._has_room():
            sequence = self._matching[self._position]
            if not self._has_request(sequence, self._position + 1):
                break
            self._position += 1
            self._deliver(sequence, now)

    def _beat(self, now: float) -> None:
        for request in self._requests:
            if request.next_beat <= now:
                request.next_beat = now + request.heartbeat
                delivered = self._matching[self._position - 1] if self._position else 0
                fields = f"Nats-Last-Consumer: {self._sequence}\r\nNats-Last-Stream: {delivered}\r\n"
                request.receive(status(request.inbox, "100 Idle Heartbeat", fields))

    def next_due(self) -> float:
        """Return when `poll` may have something to do if nothing else happens before."""
        if not self._requests:
            return inf
        held_until = max(self.paused_until, self._stream.leaderless_until)
        due = self._earliest if held_until == -inf else held_until
        return min(due, *(min(request.deadline, request.next_beat) for request in self._requests))

    def _expire_requests(self, now: float) -> None:
        if all(request.deadline > now for request in self._requests):
            return
        waiting, self._requests = self._requests, deque()
        for request in waiting:
            if request.deadline > now:
                self._requests.append(request)
            else:
                _end(request, "408 Request Timeout")

    def _look_at_stream(self) -> None:
        wanted = self.spec.filters
        for stored in self._stream.stored[self._next_to_scan - 1 :]:
            if not wanted or any(matches(one, stored.subject) for one in wanted):
                self._matching.append(stored.sequence)
            self._next_to_scan = stored.sequence + 1

    def _due(self, now: float) -> deque[int]:
        if now < self._earliest:
            return deque()
        limit = self.spec.max_deliver if self.spec.max_deliver > 0 else inf
        due = sorted((entry.due, sequence) for sequence, entry in self._unacked.items() if entry.due <= now)
        for _, sequence in due:
            if self._unacked[sequence].deliveries >= limit:
                del self._unacked[sequence]
        self._earliest = min((entry.due for entry in self._unacked.values()), default=inf)
        return deque(sequence for _, sequence in due if sequence in self._unacked)

    def _has_room(self) -> bool:
        return self.spec.max_ack_pending <= 0 or len(self._unacked) < self.spec.max_ack_pending

    def _postpone(self, entry: _Unacked, due: float) -> None:
        entry.due = due
        self._earliest = min(self._earliest, due)

    def _has_request(self, sequence: int, position: int) -> bool:
        """Find a request that has bytes enough for the message; those before it that have not are ended."""
        deliveries = self._unacked[sequence].deliveries if sequence in self._unacked else 0
        size = delivered_size([self._message(sequence, deliveries + 1, self._sequence + 1, position)])
        while self.spec.standby and self._requests and self._requests[0].pin not in (self._pin, None):
            _end(self._requests.popleft(), "423 Nats-Wrong-Pin-Id")
        while self._requests and self._requests[0].bytes < size:
            _end(self._requests.popleft(), "409 Message Size Exceeds MaxBytes")
        return bool(self._requests)

    def _deliver(self, sequence: int, now: float) -> None:
        request = self._requests[0]
        entry = self._unacked.setdefault(sequence, _Unacked(0, inf))
        entry.deliveries += 1
        self._postpone(entry, now + self.spec.ack_wait)
        self._sequence += 1
        message = self._message(sequence, entry.deliveries, self._sequence, self._position)
        request.remaining -= 1
        request.bytes -= delivered_size([message])
        request.next_beat = now + request.heartbeat
        self._losses.meets("message", now, lambda: request.receive(message))
        if request.remaining <= 0 or request.bytes <= 0:
            self._requests.popleft()
            if 0 < request.bytes < inf:
                _end(request, "409 Batch Completed")

    def _message(self, sequence: int, deliveries: int, consumer_sequence: int, position: int) -> RawMessage:
        stored = self._stream.stored[sequence - 1]
        reply = ack_reply.subject(
            self.spec.stream.encode(),
            self.spec.durable.encode(),
            deliveries=deliveries,
            sequence=sequence,
            number=consumer_sequence,
            time=stored.timestamp,
            pending=len(self._matching) - position,
        )
        _, _, block, body = stored.publish
        if self.headers_only:
            block, body = replace_header(block, b"Nats-Msg-Size", b"%d" % len(body)), b""
        return raw(stored.publish.subject, reply, block, body)


def _nobody(message: RawMessage) -> None:
    """Receive nothing."""


def _end(request: _Request, line: str) -> None:
    """Tell the status that ends a request."""
    left = request.bytes if request.bytes < inf else 0
    fields = f"Nats-Pending-Messages: {request.remaining}\r\nNats-Pending-Bytes: {left}\r\n"
    request.receive(status(request.inbox, line, fields))
