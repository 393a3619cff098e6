"""The position of a route in a stream: unsettled messages, recently settled ones, the start of a new consumer. Pure.

The server keeps all this in the durable consumer. If the durable is deleted, the start of its replacement is taken from
here: behind the settled messages, and never behind an unsettled one. A settled message that is redelivered, because its
ack was lost or because a new consumer starts before it, is recognized here.

Other processes may hold messages of the same durable. Which of those are settled is known only from the consumer's ack
floor, which is looked up when the durable is opened and every few seconds (`learn`). As long as deliveries that were
missed here may be unsettled elsewhere, a new durable starts no later than when the first of them was missed, or behind
the ack floor if that is later.

A message is identified by its sequence and the time when it was stored, both given by the stream: a stream that
was restored, purged or recreated gives known sequences to other messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from itertools import repeat
from math import inf
from operator import lt

from router_trio.routing.policy.failed_messages import FailedMessages

REMEMBERED = 65_536
"""At least this number of recently settled messages is remembered, and at most this number of unsettled ones.

For each route, at most three times as many are remembered, with some 130 bytes each: 26 MB at most.
"""


class StreamCursor:
    """The position of a route in one incarnation of a stream. `stream_created` identifies it; `""` if unknown.

    `next_delivery`: the consumer's number of the first delivery of this incarnation. `failures`: its failed messages.
    """

    __slots__ = (
        "_doubt",
        "_doubt_until",
        "_elsewhere",
        "_elsewhere_after",
        "_elsewhere_to",
        "_floor",
        "_highest",
        "_highest_time",
        "_next_delivery",
        "_older",
        "_recent",
        "_unsettled",
        "failures",
        "found_by_message",
        "missed_to",
        "stream_created",
        "streams_before",
    )

    def __init__(self, stream_created: str = "", *, next_delivery: int = 1) -> None:
        self.stream_created: str = stream_created
        self.found_by_message: bool = False
        """True if a message showed that the stream was replaced: `stream_created` may be that of the one before."""
        self.streams_before: int = 0
        """The number of earlier incarnations of the stream that were replaced."""
        self.missed_to: int = 0
        """The number of the last delivery that was not received here: of those behind it, none is missing."""
        self.failures: FailedMessages = FailedMessages()
        # The times of messages, by sequence.
        self._unsettled: dict[int, bytes] = {}
        self._recent: dict[int, bytes] = {}
        self._older: dict[int, bytes] = {}
        self._floor = 0
        # Deliveries up to the number `_elsewhere_after` may have gone elsewhere: messages from `_elsewhere` (None if
        # there are none) up to `_elsewhere_to` (None if no lookup of the consumer has shown it yet).
        self._elsewhere: int | None = None
        self._elsewhere_after = 0
        self._elsewhere_to: int | None = None
        self._highest = 0
        self._highest_time = b""
        self._next_delivery = next_delivery
        self._doubt: int | None = None
        self._doubt_until = 0.0

    @property
    def start(self) -> int:
        """The first message that a new consumer has to deliver: the oldest one that may be unsettled."""
        oldest = min(self._unsettled, default=self._highest + 1)
        return max(self._floor + 1, oldest if self._elsewhere is None else min(oldest, self._elsewhere))

    @property
    def deliveries(self) -> int:
        """The consumer's number of the last known delivery."""
        return self._next_delivery - 1

    @property
    def highest(self) -> int:
        """The highest sequence that was received, 0 for none."""
        return self._highest

    def was_renumbered(self, deliveries: int) -> bool:
        """Return True if the consumer counts its deliveries from 1 again, because it was reset or recreated.

        A consumer that only lost its last deliveries together with its leader is just a little behind.
        """
        return 2 * deliveries <= self.deliveries

    def renumber(self) -> None:
        """Expect the first delivery of a consumer that counts from 1 again."""
        self._next_delivery, self.missed_to = 1, 0

    def lacks(self, deliveries: int) -> bool:
        """Return True if the last of the consumer's `deliveries` were not received here."""
        return deliveries >= self._next_delivery

    @property
    def unsettled(self) -> int:
        """The number of received messages that are unsettled: in hand, or to be redelivered."""
        return len(self._unsettled)

    def unsettled_without(self, in_hand: Collection[int]) -> list[int]:
        """Return the unsettled messages that are not in hand, which are to be redelivered."""
        return [sequence for sequence in self._unsettled if sequence not in in_hand]

    @property
    def oldest_time(self) -> int:
        """The time of the first unsettled message, in nanoseconds since 1970; 0 if there is none, or if unknown."""
        if not self._unsettled:
            return 0
        time = self._unsettled[min(self._unsettled)][:20]
        return int(time) if time.isdigit() else 0

    @property
    def unseen_from(self) -> int:
        """The first message that the consumer may have delivered and that was not received here."""
        behind = self._highest + 1
        return behind if self._doubt is None else min(behind, self._doubt)

    def doubt_before(self, until: float) -> None:
        """Assume that deliveries before the first known one may belong to this incarnation.

        They were attributed to the previous incarnation. If that is wrong, they are redelivered before `until`.
        """
        if self._next_delivery > 1:
            self._doubt, self._doubt_until = self.start, until
            self._suspect(self._next_delivery - 1)

    def begin_behind(self, sequence: int) -> None:
        """Start a new durable behind that sequence: messages up to it are settled, or will never be delivered."""
        self._floor = max(self._floor, sequence)
        if self.failures.retried:
            self.failures.retried.forget_up_to(sequence)

    def learn(self, floor: int, delivered: int, deliveries: int) -> None:
        """Take in one snapshot of the consumer: its ack floor, and how far it has delivered.

        `delivered` is the last sequence delivered for the first time, `deliveries` counts all deliveries.
        """
        self.begin_behind(floor)
        if self._elsewhere is None:
            return
        if self._elsewhere_to is None and deliveries >= self._elsewhere_after:
            # A recreated durable may not have delivered again what other processes hold of the previous one.
            self._elsewhere_to = max(delivered, self._highest)
        if self._elsewhere_to is not None and floor >= self._elsewhere_to:
            self._elsewhere = None

    def forget_up_to(self, floor: int, in_hand: Collection[int]) -> None:
        """Forget unsettled messages up to the ack floor that are not in hand: other processes have settled them."""
        unsettled = self._unsettled
        if len(unsettled) > len(in_hand):
            for sequence in [one for one in unsettled if one <= floor and one not in in_hand]:
                del unsettled[sequence]

    def lead_ends(self, in_hand: Collection[int]) -> None:
        """Forget unsettled messages that are not in hand: another process may settle them, or they are redelivered.

        They count as deliveries that may have gone elsewhere.
        """
        unsettled = self._unsettled
        if len(unsettled) > len(in_hand):
            self._doubt = self.start
            self._suspect(self.deliveries)
            for sequence in [one for one in unsettled if one not in in_hand]:
                del unsettled[sequence]

    def _suspect(self, deliveries: int) -> None:
        """Record that deliveries up to that number may have gone elsewhere."""
        self._elsewhere = self.start
        self._elsewhere_after, self._elsewhere_to = deliveries, None

    def opened(self, deliveries: int, now: float, within: float, *, in_use: bool, others_seen: bool) -> bool:
        """Take in the number of deliveries of an opened consumer. Return True if missing ones went to this process.

        They may not be if other processes use the consumer now, and may have used it before: their deliveries were
        seen, or this process has received nothing of this incarnation of the stream. Requesting these deliveries again
        would only deliver them twice.
        """
        alone = not (in_use and (others_seen or not self._highest))
        self._count(deliveries, now, within)
        return alone

    @property
    def last_known(self) -> tuple[int, int]:
        """The sequence and the time, in nanoseconds since 1970, of the last received message; zeros for none."""
        time = self._highest_time[:20]
        return (self._highest, int(time)) if time.isdigit() else (0, 0)

    @property
    def last_passed(self) -> tuple[int, int]:
        """The sequence and the time, in nanoseconds since 1970, of the last message received before `start`.

        Zeros if there is none, or if unknown. Later messages may be of another incarnation of the stream: if deliveries
        went elsewhere, those that would have shown the rollback may be among them.
        """
        start = self.start
        if start > self._highest:
            return self.last_known
        sequence, time = 0, b""
        for known in (self._recent, self._older, self._unsettled):
            found = start - 1 if start - 1 in known else max(filter(start.__gt__, known), default=0)
            if found > sequence:
                sequence, time = found, known[found][:20]
            if sequence == start - 1:
                break  # nearly always
        return (sequence, int(time)) if time.isdigit() else (0, 0)

    def contradicted(self, sequence: int, time: bytes) -> bool:
        """Return True if another message is known under that sequence: then the stream was reset."""
        for known in (self._unsettled, self._recent, self._older):
            if sequence in known:
                return known[sequence] != time
        return False

    def knows(self, sequence: int) -> bool:
        """Return True if this process received that message, which is in hand, settled, or to be redelivered."""
        return sequence in self._unsettled or sequence in self._recent or sequence in self._older

    def is_settled(self, sequence: int) -> bool:
        """Return True if this process is known to have settled that message."""
        return sequence in self._recent or sequence in self._older

    def take_over(self, sequence: int, time: bytes) -> bool:
        """Record a message that the consumer delivered before and does not deliver any more. Return True if unsettled.

        Return False also if the stream has another message under its sequence.
        """
        if self.is_settled(sequence) or self.contradicted(sequence, time):
            return False
        self._remember((sequence,), (time,))
        return True

    def time_of(self, sequence: int) -> bytes:
        """Return the time of an unsettled message, `b""` if unknown."""
        return self._unsettled.get(sequence, b"")

    def followed(self, sequences: Sequence[int], deliveries: Sequence[int], times: Sequence[bytes]) -> bool:
        """Record received messages, if these are the consumer's next deliveries, of new messages, with none missing.

        Return True if they are, as nearly always. Otherwise nothing is recorded: call `mark_received`.
        """
        following = range(self._next_delivery, self._next_delivery + len(deliveries))
        behind = (self._highest, *sequences)
        if self._doubt is not None or tuple(following) != tuple(deliveries) or not all(map(lt, behind, sequences)):
            return False
        self._next_delivery = following.stop
        self._highest = sequences[-1]
        self._highest_time = times[-1]
        self._remember(sequences, times)
        return True

    def missing_before(self, delivery: int) -> int:
        """Return the number of deliveries before that one that were not received."""
        return max(0, delivery - self._next_delivery)

    def mark_received(self, sequence: int, delivery: int, time: bytes, now: float, within: float) -> bool:
        """Record a received message, which does not contradict known ones, as the consumer's delivery of that number.

        Returns True if it is unsettled.

        Missing deliveries (see `missing_before`) went to a link that died, or elsewhere. They are redelivered `within`
        that many seconds if the consumer still exists; until then a new one would have to start before them.
        """
        if self._count(delivery - 1, now, within) and now >= self._doubt_until and sequence > self._highest:
            # Due messages are redelivered before new ones, so a new one shows that the missing ones were received.
            self._doubt = None
        self._next_delivery += 1
        if sequence > self._highest:
            self._highest, self._highest_time = sequence, time
        if sequence in self._recent or sequence in self._older:
            return False
        self._remember((sequence,), (time,))
        return True

    def _remember(self, sequences: Sequence[int], times: Sequence[bytes]) -> None:
        self._unsettled.update(zip(sequences, times, strict=True))
        if len(self._unsettled) > REMEMBERED:
            self._doubt, self._doubt_until = self.start, inf
            self._suspect(self._next_delivery - 1)
            self._unsettled.clear()

    def _count(self, deliveries: int, now: float, within: float) -> bool:
        """Return True if all `deliveries` so far were received here, or the consumer is new."""
        complete = deliveries in (0, self._next_delivery - 1)
        self.missed_to = min(self.missed_to, deliveries) if complete else deliveries
        if not complete:
            self._doubt, self._doubt_until = self.start, max(self._doubt_until, now + within)
            self._suspect(deliveries)
        self._elsewhere_after = min(self._elsewhere_after, deliveries)  # a recreated durable counts from 1
        self._next_delivery = deliveries + 1
        return complete

    def mark_settled(self, sequences: Sequence[int], times: Sequence[bytes]) -> None:
        """Record that messages are settled."""
        deque(map(self._unsettled.pop, sequences, repeat(None)), 0)
        failures = self.failures
        if failures.failed or failures.given_up:
            failures.discard(sequences)
        self._recent.update(zip(sequences, times, strict=True))
        if len(self._recent) >= REMEMBERED:
            self._older, self._recent = self._recent, {}

    def given_up(self, sequence: int) -> None:
        """Record that a failed message is not retried. If it is redelivered, its ack or term was lost."""
        time = self._unsettled.get(sequence)
        if time is not None:
            self.mark_settled((sequence,), (time,))
