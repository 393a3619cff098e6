"""A durable pull consumer in memory with explicit acks: its pull requests, deliveries and redeliveries.

Synchronous; callers pass the time. Pull requests are served in order of arrival, and due redeliveries go before new
messages. Statuses have the text of nats-server, and end a request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from router_trio.errors import SourceError, reasons
from router_trio.link import LEAD_ENDS_AFTER, ConsumerSpec, ConsumerState, LeadState, Progress, StoredAt
from router_trio.protocol import ack_reply
from router_trio.protocol.advisories import MAX_DELIVERIES
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
    """A durable consumer of one stream. It resumes at the position in its spec if that belongs to this stream."""

    def __init__(
        self,
        spec: ConsumerSpec,
        stream: Stream,
        losses: Losses,
        advise: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        """`advise` sends an advisory about it: a kind, and more fields."""
        resumes = spec.start_sequence is not None and spec.stream_created is not None and not stream.differs(spec)
        self.spec: ConsumerSpec = spec
        self.deleted: bool = False
        self.headers_only = False
        self.is_fixed = False
        self.paused_until: float = -inf
        self.leaderless_until: float = -inf
        self._pin: str | None = None
        self._pins = 0
        self._lead_until = -inf
        self._losses = losses
        self._advise = advise
        self._stream = stream
        self._requests: deque[_Request] = deque()
        self._matching: list[int] = []
        again = spec.stream_created is not None
        recreated = again and (spec.deliver == "new" or isinstance(spec.deliver, int))
        start = "" if resumes or recreated else spec.deliver
        self.began: str = start if isinstance(start, str) else ""
        """The start of the consumer, as in `link.Limits`."""
        self._first = (spec.start_sequence or 1) if resumes else stream.first_since(start)
        self._next_to_scan = self._first
        self._position = 0
        self._unacked: dict[int, _Unacked] = {}
        self._again: deque[int] = deque()
        """The redelivery queue: unacked messages that are due, in the order in which they became so."""
        self._at_the_limit: set[int] = set()
        self._behind_floor: set[int] = set()
        """Messages at the limit of deliveries behind the ack floor, which moves when an ack leaves nothing unacked."""
        # Never later than the earliest `due` of the unacked, so that `poll` need not look at all of them.
        self._earliest = inf
        self._sequence = 0
        self._answers: Counter[bytes] = Counter()
        self.lifted: Sequence[str] = ()
        """The limits that were removed when it was opened: see `take_lifted`."""

    @property
    def stream_created(self) -> str:
        """The creation time of its stream, which identifies the incarnation of the stream."""
        return self._stream.created

    def differs(self, spec: ConsumerSpec) -> str | None:
        """Return how the stream differs from the one that the spec describes: see `streams.Stream.differs`."""
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
        passed = min(min({*self._unacked, *self._behind_floor}, default=delivered + 1) - 1, len(self._stream.stored))
        return Progress(self._sequence, bool(self._requests), passed, passed, max(delivered, 0))

    def state_at(self, now: float) -> ConsumerState:
        """Return the state of the consumer at this time."""
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
            time=int((self._stream.epoch + now) * 1e9),
            ack_wait=self.spec.ack_wait,
            redelivered=self._redelivered,
        )

    @property
    def _redelivered(self) -> int:
        """Return the number of messages that count as redelivered and not acked."""
        # While the limit is a single delivery, messages that reached it do not count (nats-server 2.15.1).
        at_the_limit = 0 if self.spec.max_deliver == 1 else len(self._at_the_limit)
        return at_the_limit + sum(one.deliveries > 1 for one in self._unacked.values())

    def stored(self, first: int, last: int, most: int) -> list[RawMessage]:
        """Return the first messages of a range that it would deliver and the stream has: see `link.PullConsumer`."""
        self._look_at_stream()
        found = [one for one in self._matching if first <= one <= last]
        return [self._message(one, 1, self._sequence, self._position) for one in found[:most]]

    @property
    def oldest(self) -> StoredAt | None:
        """The first message that is not acked or not delivered; None if there is none."""
        self._look_at_stream()
        left = [*self._unacked, *self._matching[self._position : self._position + 1]]
        if not left:
            return None
        return StoredAt(min(left), self._stream.stored[min(left) - 1].timestamp)

    def left_unacked(self) -> list[int]:
        """Return the sequences of delivered, unacked messages, in order."""
        return sorted(self._unacked)

    def is_due(self, sequence: int, now: float) -> bool:
        """Return True if an unacked message is redelivered as soon as it is requested."""
        return sequence in self._again or self._unacked[sequence].due <= now

    def look_for(self, awaited: Mapping[int, bytes], now: float) -> tuple[ConsumerState, set[int]] | SourceError:
        """Return the state, and those of the messages that the stream does not have; an error if it can't be asked."""
        if self.deleted or not self.has_leader(now):
            return SourceError("the consumer can't be asked now", reason=reasons.JETSTREAM_UNAVAILABLE)
        stored = self._stream.stored
        return self.state_at(now), {
            sequence
            for sequence, time in awaited.items()
            if sequence > len(stored) or (time and int(time) != stored[sequence - 1].timestamp)
        }

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
        """Add a pull request that expires after `expires` seconds, with a heartbeat every `heartbeat` seconds if idle.

        It receives at most `batch` messages, with at most `max_bytes` in total unless that is 0. A deleted consumer
        answers as a server without subscribers.
        """
        if self.deleted or not self.has_leader(now):
            receive(status(inbox, "503"))
            return
        if self.spec.standby and self._pin is not None and (pin != self._pin or now >= self._lead_until):
            receive(status(inbox, "423 Nats-Wrong-Pin-Id"))
            return
        self.keep_pin(pin, now)
        request = _Request(inbox, receive, batch, max_bytes or inf, now + expires, heartbeat, now + heartbeat, pin)
        self._losses.apply("pull", now, lambda: self._requests.append(request))

    def has_leader(self, now: float) -> bool:
        """Return True if the consumer and its stream have leaders."""
        return now >= max(self.leaderless_until, self._stream.leaderless_until)

    def take_pin(self, pin: str | None, now: float) -> str | None:
        """Return the pin if it has the lead, or a new pin if none has it.

        None if another pin has the lead, or while it is paused: a server names the leader with a message.
        """
        if now < self.paused_until:
            return None
        if now >= self._lead_until:
            self._pins += 1
            self._pin = f"pin{self._pins}"
        elif pin != self._pin:
            return None
        self._lead_until = now + LEAD_ENDS_AFTER
        return self._pin

    def keep_pin(self, pin: str | None, now: float) -> bool:
        """Extend the lead if this pin has it. Return False if it has not."""
        if pin != self._pin or now >= self._lead_until or now < self.leaderless_until:
            return False
        self._lead_until = now + LEAD_ENDS_AFTER
        return True

    def hold(self, pin: str, now: float) -> bool:
        """Answer a request with no room for a message, which extends the lead. Return False if this pin has it not."""
        held = self.keep_pin(pin, now)
        if held and not self._requests:
            self._queue_what_is_due(now)
            self._again.rotate(-1)  # its next redelivery goes behind all others
        return held

    def lead_state(self, now: float) -> LeadState:
        """Return whether it has a leader, or is paused."""
        state = self.state_at(now)
        if state.paused is not None:
            return LeadState(unled=False, paused=state.paused)
        return LeadState(unled=self._lead_until <= now and bool(state.undelivered or state.unacked))

    def drop_pin(self, pin: str | None, now: float) -> None:
        """Release the lead if this pin has it."""
        if pin == self._pin and now >= self.leaderless_until:
            self._lead_until = now

    def elect(self) -> None:
        """End all pull requests, and forget the pin, as a new leader of the consumer does: pins are not replicated."""
        self.end_requests("409 Leadership Change")
        self._pin, self._lead_until = None, -inf

    def remove_requests(self, receive: Receive) -> None:
        """Remove the pull requests of a closed link."""
        self._requests = deque(request for request in self._requests if request.receive != receive)

    def strand_requests(self, receive: Receive) -> None:
        """Keep the pull requests of a dead, half-open link; their messages are lost."""
        for request in self._requests:
            if request.receive == receive:
                request.receive, request.next_beat, request.heartbeat = _discard, inf, inf

    def answers_of_others(self, inbox: bytes) -> int:
        """Return the number of acks, naks and in-progress signals that were not sent by the link with that inbox."""
        return self._answers.total() - self._answers[inbox]

    def ack(self, sequence: int, by: bytes = b"") -> bool:
        """Ack a message. Return True if it was unacked; otherwise do nothing, as a server does.

        `by`, here and below: the inbox of the link that answers.
        """
        self._answers[by] += 1
        self._at_the_limit.discard(sequence)
        if self.deleted or sequence not in self._unacked:
            return False
        del self._unacked[sequence]
        self._take_from_queue(sequence)
        if not self._unacked:
            self._behind_floor.clear()
        return True

    def claim(self, sequence: int, counted: int, by: bytes = b"") -> bool | None:
        """Terminate a message as `link.PullConsumer.claim` does."""
        if self.deleted or self._redelivered != counted:
            return None
        self.ack(sequence, by)
        return self._redelivered < counted

    def nak(self, sequence: int, now: float, delay: float, by: bytes = b"") -> None:
        """Redeliver a message after `delay` seconds. Without a delay, one that is due keeps its place in the queue."""
        self._answers[by] += 1
        if sequence in self._unacked and (delay or sequence not in self._again):
            self._take_from_queue(sequence)
            self._postpone(self._unacked[sequence], now + delay)

    def say_at_work(self, now: float, by: bytes = b"") -> None:
        """Count an in-progress signal that acks no message, unless it is lost on its way."""
        self._losses.apply("in_progress", now, lambda: self.extend_ack_wait(0, now, by))

    def extend_ack_wait(self, sequence: int, now: float, by: bytes = b"") -> None:
        """Restart the ack wait of a message. One that waits for redelivery keeps its place in the queue."""
        self._answers[by] += 1
        if sequence in self._unacked and sequence not in self._again:
            self._postpone(self._unacked[sequence], now + self.spec.ack_wait)

    def again(self, sequences: Sequence[int], now: float, by: bytes | None = None) -> None:
        """Redeliver these messages before new ones, behind those that are due. Others than unacked ones are ignored.

        Without `by`, no client has asked for it.
        """
        for sequence in sequences if now >= self.leaderless_until else ():
            if by is not None:
                self._answers[by] += 1
            self._take_from_queue(sequence)
            if sequence in self._unacked:
                self._postpone(self._unacked[sequence], now)

    def take_by_hand(self, count: int, *, ack: bool) -> None:
        """Deliver the next messages to another process, which acks them or not."""

        def receive(message: RawMessage) -> None:
            if ack and message[1]:
                self.ack(int(ack_reply.tokens(message[1])[ack_reply.SEQUENCE]))

        self._requests.appendleft(_Request(b"hand", receive, count, inf, inf, inf, inf))

    def redeliver_by_hand(self, count: int, now: float) -> list[int]:
        """Redeliver `count` unacked messages to another process, which does not ack them. Return their sequences.

        If there are fewer, the remaining deliveries count as those of messages that the stream has deleted.
        """
        taken = self.left_unacked()[:count]
        if taken:
            request = _Request(b"hand", _discard, len(taken) + 1, inf, inf, inf, inf)
            self._requests.appendleft(request)
            for sequence in taken:
                self._take_from_queue(sequence)
                self._deliver(sequence, now)
            self._requests.remove(request)
        self._sequence += count - len(taken)
        return taken

    def delete(self) -> None:
        """Delete the consumer and end its pull requests."""
        self.deleted = True
        self.end_requests("409 Consumer Deleted")

    def end_requests(self, why: str) -> None:
        """End all pull requests with a status."""
        for request in self._requests:
            request.receive(status(request.inbox, why))
        self._requests.clear()

    def reset(self, sequence: int) -> None:
        """Continue at the first message from `sequence` on, and forget all unacked messages."""
        self._look_at_stream()
        self._position = bisect_left(self._matching, sequence)
        self._unacked.clear()
        self._again.clear()
        self._at_the_limit.clear()
        self._behind_floor.clear()
        self._earliest, self._sequence = inf, 0

    def take_lifted(self) -> Sequence[str]:
        """Return the limits that were removed when it was opened, since the last call."""
        lifted, self.lifted = self.lifted, ()
        return lifted

    def edit(self, now: float, **changes: Any) -> None:
        """Change fields of the spec, as an administrator can.

        As on a server, a new ack wait also holds for delivered messages, and moves the end of the delay of a nak by the
        difference. Messages that are already due stay due.
        """
        longer = -self.spec.ack_wait
        self.spec = replace(self.spec, **changes)
        longer += self.spec.ack_wait
        for entry in self._unacked.values():
            if longer and entry.due > now:
                self._postpone(entry, entry.due + longer)

    def went_back(self) -> None:
        """Forget messages that the stream has lost at its end."""
        last = len(self._stream.stored)
        self._matching = [sequence for sequence in self._matching if sequence <= last]
        self._position = min(self._position, len(self._matching))
        self._next_to_scan = min(self._next_to_scan, last + 1)
        self._unacked = {sequence: entry for sequence, entry in self._unacked.items() if sequence <= last}
        self._again = deque(sequence for sequence in self._again if sequence <= last)
        self._at_the_limit = {sequence for sequence in self._at_the_limit if sequence <= last}
        self._behind_floor &= self._at_the_limit

    def poll(self, now: float) -> None:
        """End expired requests, deliver messages that can be delivered, and send heartbeats."""
        self._expire_requests(now)
        self._look_at_stream()
        stream = self._stream
        if now >= max(self.paused_until, self.leaderless_until, stream.leaderless_until):
            self.paused_until = self.leaderless_until = stream.leaderless_until = -inf
            self._deliver_what_is_due(now)
        self._beat(now)

    def _deliver_what_is_due(self, now: float) -> None:
        self._queue_what_is_due(now)
        while self._again and self._requests:
            sequence = self._again.popleft()
            if not self._has_request(sequence, self._position):
                self._again.append(sequence)  # as nats-server does: what no request had room for is behind all others
                break
            self._deliver(sequence, now)
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
        """Return the next time at which `poll` may have something to do, unless something else happens before."""
        if not self._requests:
            return inf
        held_until = max(self.paused_until, self.leaderless_until, self._stream.leaderless_until)
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
        filters = self.spec.filters
        for stored in self._stream.stored[self._next_to_scan - 1 :]:
            if not filters or any(matches(pattern, stored.subject) for pattern in filters):
                self._matching.append(stored.sequence)
            self._next_to_scan = stored.sequence + 1

    def _queue_what_is_due(self, now: float) -> None:
        """Put messages that have become due into the redelivery queue, and give up those at the limit of deliveries."""
        if now < self._earliest:
            return
        limit = self.spec.max_deliver if self.spec.max_deliver > 0 else inf
        due = sorted((entry.due, sequence) for sequence, entry in self._unacked.items() if entry.due <= now)
        for _, sequence in due:
            entry = self._unacked[sequence]
            if entry.deliveries < limit:
                entry.due = inf
                self._again.append(sequence)
                continue
            del self._unacked[sequence]
            self._at_the_limit.add(sequence)
            self._behind_floor.add(sequence)
            self._advise(MAX_DELIVERIES, stream_seq=sequence, deliveries=entry.deliveries)
        self._earliest = min((entry.due for entry in self._unacked.values()), default=inf)

    def _take_from_queue(self, sequence: int) -> None:
        if sequence in self._again:
            self._again.remove(sequence)

    def _has_room(self) -> bool:
        return self.spec.max_ack_pending <= 0 or len(self._unacked) < self.spec.max_ack_pending

    def _postpone(self, entry: _Unacked, due: float) -> None:
        entry.due = due
        self._earliest = min(self._earliest, due)

    def _has_request(self, sequence: int, position: int) -> bool:
        """Return True if a request has enough bytes for the message. End the requests before it that have not."""
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
        self._losses.apply("message", now, lambda: request.receive(message))
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


def _discard(message: RawMessage) -> None:
    """Lose the message."""


def _end(request: _Request, line: str) -> None:
    """Send the status that ends a request."""
    left = request.bytes if request.bytes < inf else 0
    fields = f"Nats-Pending-Messages: {request.remaining}\r\nNats-Pending-Bytes: {left}\r\n"
    request.receive(status(request.inbox, line, fields))
