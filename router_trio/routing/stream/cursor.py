"""Where a route stands in a stream: what is unsettled, what was settled lately, where a new consumer starts. Pure.

The server keeps all this in the durable consumer. A durable that is deleted takes it along, and the one that replaces
it is told by this where to start: behind what is settled, and never behind a message that isn't. A message that comes
again though it is settled, because its ack was lost or because a new consumer starts before it, is known here.

Other processes may hold messages of the same durable. Of those only the consumer's ack floor says what is settled: it
is asked for when the durable is opened and every few seconds (`learn`). As long as deliveries that did not come here
may be unsettled elsewhere, a new durable starts no later than it would have when the first of them was missed, or
behind the ack floor if that is later.

A message is known by its sequence and the time when it was stored, both as the stream gives them: a stream that went
back in time (restored, emptied, made again) gives known sequences to other messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import repeat
from math import inf
from operator import lt

from router_trio.routing.policy.failed_messages import FailedMessages

REMEMBERED = 65_536
"""At least so many of the last settled messages are known; so many unsettled ones are told apart.

In bytes: some 130 for each, of three times as many at most, for each route: 26 MB when all is used.
"""


class StreamCursor:
    """The position of a route in one incarnation of a stream. `stream_created` names it, `""` for none yet.

    `next_delivery`: the consumer's number of the first delivery that is meant here. `failures`: what failed of it.
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
        "stream_created",
        "streams_before",
    )

    def __init__(self, stream_created: str = "", *, next_delivery: int = 1) -> None:
        self.stream_created: str = stream_created
        self.found_by_message: bool = False
        """True if a message showed that the stream was replaced: `stream_created` may be that of the one before."""
        self.streams_before: int = 0
        """How many streams of that name were replaced before this one."""
        self.failures: FailedMessages = FailedMessages()
        # The time of each message, by its sequence.
        self._unsettled: dict[int, bytes] = {}
        self._recent: dict[int, bytes] = {}
        self._older: dict[int, bytes] = {}
        self._floor = 0
        # Deliveries up to the number `_elsewhere_after` may have gone elsewhere, from `_elsewhere` (None: no message)
        # up to `_elsewhere_to` (None: no look at the consumer has said so yet).
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
        """The first message that a new consumer has to deliver: the oldest that may not be settled."""
        oldest = min(self._unsettled, default=self._highest + 1)
        return max(self._floor + 1, oldest if self._elsewhere is None else min(oldest, self._elsewhere))

    @property
    def deliveries(self) -> int:
        """The consumer's number of the last delivery that is known of."""
        return self._next_delivery - 1

    @property
    def highest(self) -> int:
        """The last message that came, 0 for none."""
        return self._highest

    def was_renumbered(self, deliveries: int) -> bool:
        """Return True if the consumer counts its deliveries from 1 once more: somebody has reset it, or made it again.

        One that only lost the last ones, with its leader, is a little behind.
        """
        return 2 * deliveries <= self.deliveries

    def renumber(self) -> None:
        """Expect the first delivery of a consumer that counts from 1 once more."""
        self._next_delivery = 1

    def lacks(self, deliveries: int) -> bool:
        """Return True if of so many deliveries of the consumer the last ones did not come here."""
        return deliveries >= self._next_delivery

    @property
    def unsettled(self) -> int:
        """How many messages came and are not settled: in hand, or to come again."""
        return len(self._unsettled)

    @property
    def unseen_from(self) -> int:
        """The first message that the consumer may have delivered and that did not come: it may be undelivered."""
        behind = self._highest + 1
        return behind if self._doubt is None else min(behind, self._doubt)

    def doubt_before(self, until: float) -> None:
        """Allow deliveries from before the first one that is meant here to be of this incarnation.

        It was taken for messages of the one before, and comes again until then if it is not.
        """
        if self._next_delivery > 1:
            self._doubt, self._doubt_until = self.start, until
            self._suspect(self._next_delivery - 1)

    def begin_behind(self, sequence: int) -> None:
        """Start no durable at or before that sequence: all up to there is settled, or was never to be delivered."""
        self._floor = max(self._floor, sequence)
        if self.failures.retried:
            self.failures.retried.forget_up_to(sequence)

    def learn(self, floor: int, delivered: int, deliveries: int) -> None:
        """Take in what a look at the consumer found, in one snapshot: its ack floor, and how far it had delivered.

        `delivered` is the last sequence delivered for the first time, `deliveries` counts all deliveries.
        """
        self.begin_behind(floor)
        if self._elsewhere is None:
            return
        if self._elsewhere_to is None and deliveries >= self._elsewhere_after:
            # A durable that was made again since may not have delivered once more what others hold of the one before.
            self._elsewhere_to = max(delivered, self._highest)
        if self._elsewhere_to is not None and floor >= self._elsewhere_to:
            self._elsewhere = None

    def _suspect(self, deliveries: int) -> None:
        """Deliveries up to that number may have gone elsewhere."""
        self._elsewhere = self.start
        self._elsewhere_after, self._elsewhere_to = deliveries, None

    def opened(self, deliveries: int, now: float, within: float, *, in_use: bool, others_seen: bool) -> bool:
        """The consumer was found, with so many deliveries behind it. Returns True if what is missing is ours alone.

        It is not if the consumer is in use by others now, and may have been before: their deliveries were seen, or this
        process has received nothing of this incarnation of the stream. Asking for those again would only have them
        delivered twice.
        """
        alone = not (in_use and (others_seen or not self._highest))
        self._count(deliveries, now, within)
        return alone

    @property
    def last_known(self) -> tuple[int, int]:
        """The sequence of the last message that came, and its time in nanoseconds since 1970; zeros for none."""
        time = self._highest_time[:20]
        return (self._highest, int(time)) if time.isdigit() else (0, 0)

    def contradicted(self, sequence: int, time: bytes) -> bool:
        """Return True if another message was known by that sequence: then the stream went back in time."""
        for known in (self._unsettled, self._recent, self._older):
            if sequence in known:
                return known[sequence] != time
        return False

    def knows(self, sequence: int) -> bool:
        """Return True if that message came to this process, and is in hand, settled, or to come again."""
        return sequence in self._unsettled or sequence in self._recent or sequence in self._older

    def time_of(self, sequence: int) -> bytes:
        """Return the time of an unsettled message, `b""` if it is not known."""
        return self._unsettled.get(sequence, b"")

    def followed(self, sequences: Sequence[int], deliveries: Sequence[int], times: Sequence[bytes]) -> bool:
        """Messages came, as the consumer's deliveries of those numbers. Returns True if all is as it nearly always is.

        That is: the next deliveries, of new messages, and nothing is missing. Else nothing was done: ask
        `mark_received`.
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
        """Return how many deliveries before that number did not come."""
        return max(0, delivery - self._next_delivery)

    def mark_received(self, sequence: int, delivery: int, time: bytes, now: float, within: float) -> bool:
        """A message came that does not contradict, as the consumer's delivery of that number.

        Returns True if it is unsettled.

        Deliveries that are missing (see `missing_before`) went to a link that died, or elsewhere. They come again
        within `within` seconds if the consumer lives; until then a new one would have to start before them.
        """
        if self._count(delivery - 1, now, within) and now >= self._doubt_until and sequence > self._highest:
            # What is due again goes before what is new: a new message proves that the missing ones have come.
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
        """Return True if all `deliveries` so far were made here, or the consumer is a new one."""
        complete = deliveries in (0, self._next_delivery - 1)
        if not complete:
            self._doubt, self._doubt_until = self.start, max(self._doubt_until, now + within)
            self._suspect(deliveries)
        self._elsewhere_after = min(self._elsewhere_after, deliveries)  # a durable that was made again counts from 1
        self._next_delivery = deliveries + 1
        return complete

    def mark_settled(self, sequences: Sequence[int], times: Sequence[bytes]) -> None:
        """These messages need not come again."""
        deque(map(self._unsettled.pop, sequences, repeat(None)), 0)
        failures = self.failures
        if failures.failed or failures.given_up:
            failures.discard(sequences)
        self._recent.update(zip(sequences, times, strict=True))
        if len(self._recent) >= REMEMBERED:
            self._older, self._recent = self._recent, {}

    def given_up(self, sequence: int) -> None:
        """The message is not tried again, though it failed. If it comes again, what was said of that was lost."""
        time = self._unsettled.get(sequence)
        if time is not None:
            self.mark_settled((sequence,), (time,))
