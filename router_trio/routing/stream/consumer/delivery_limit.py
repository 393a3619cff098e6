"""Find the messages of a durable that reached its limit of deliveries (`max_deliver`) without being settled.

The server does not deliver such a message any more, and does not report which messages these are. The router removes
the limit of a durable when it opens it. So messages reach it before that, while the durable is edited, or if this user
may not change it, when no process has them in hand at their last delivery.

`num_redelivered` of the durable still counts each of them. So more redelivered messages than unacked ones prove that
there are some, even if no advisory was received: see `conclude`. While the limit is a single delivery, the server
counts none of them. Which messages these are is found in three ways:

- A work queue deletes what is acked. What it still has up to the ack floor was never acked.
- This process awaits the message, and the server has nothing unacked that is not in hand here.
- In a stream that keeps acked messages, terminating a message reduces that number only if it is one of them. This is
  tried with messages behind the ack floor, with those that were delivered before this process opened the durable, and
  with those that advisories have named: only while everything unacked is in hand here and was delivered once, so that
  nothing else reduces the number. A message is terminated before its dead letter is stored, so the number of
  messages is logged first: if the process ends in between, that line and the stream are all that is left.

The other messages are logged: `router-trio audit` compares the stream with the copies. Messages are looked for after a
second check, since acks may have been on their way at the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

import trio

from router_trio.errors import SourceError, reasons
from router_trio.link import ConsumerState, PullConsumer
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import RawMessage
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import StreamDelivery

MOST_AT_A_TIME: Final = 64
"""Maximum number of messages that are fetched or tried after one check."""

DENIED_FOR: Final = 60.0
"""Seconds without lookups after this user was denied one: a server logs each."""

TRIES_FOR: Final = 5.0
"""Seconds after which no further message is tried before the next check."""

APART: Final = 2.0
"""Seconds by which processes that have opened the durable at the same time begin to try messages apart, at random."""

MOST_NAMED: Final = 256
"""Maximum number of messages that advisories have named and that were not tried yet. Others are only counted."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a durable at the server, and of what this process had in hand before and after it asked for them.

    `redelivered` and `unacked` are the server's counts. `in_hand` counts messages that were delivered here and not
    answered, and `once` those of them that are known to have been delivered once. `alone`: no other process uses the
    durable. `limited`: it has a limit of deliveries, or had one.
    """

    redelivered: int
    unacked: int
    in_hand: int = 0
    once: int = 0
    alone: bool = True
    limited: bool = False


class Conclusion(NamedTuple):
    """The conclusion from `Counts`: at least `given_up` messages have reached the limit.

    `all_here`: everything unacked is in hand here. `exact`: nothing but the messages at the limit can be redelivered,
    so `given_up` is their number.
    """

    given_up: int
    all_here: bool
    exact: bool


def conclude(counts: Counts) -> Conclusion:
    """Return what the counts prove. Pure.

    A redelivered message is either at the limit or unacked. Which of the unacked ones were redelivered is known only of
    those in hand, and counts only where a limit is known: messages without a limit are never given up.
    """
    consistent = counts.alone and counts.in_hand <= counts.unacked  # otherwise another client has settled some of them
    all_here = consistent and counts.in_hand == counts.unacked
    may_come_again = counts.unacked - (counts.once if consistent and counts.limited else 0)
    given_up = max(0, counts.redelivered - may_come_again)
    return Conclusion(given_up, all_here, counts.limited and all_here and not may_come_again)


def never_acked(state: ConsumerState) -> range:
    """Return the sequences in which everything that a work queue still has was never acked."""
    return range(1, (state.passed if state.unacked else state.delivered) + 1)


class DeliveryLimit:
    """The messages of one durable that reached its limit.

    `take` is called with messages that are found. `report` is called with the number of the others when it grows, and
    with the first and last sequence between which they are.
    """

    def __init__(
        self,
        cursor: Callable[[], StreamCursor],
        take: Callable[[Sequence[RawMessage]], None],
        may_take: Callable[[], bool],
        report: Callable[[int, int, int], None],
        uniform: Callable[[float, float], float],
    ) -> None:
        """`may_take` returns False while no dead letter can be stored. `uniform` returns a random number."""
        self._uniform = uniform
        self._cursor = cursor
        self._take = take
        self._may_take = may_take
        self._report = report
        self._named: dict[int, None] = {}
        self._tried_in: StreamCursor | None = None
        self._tried_to = 0
        """Messages up to this one were tried, or need not be, in this incarnation of the stream."""
        self._delivered_before = 0
        """The last message that was delivered before this process opened the durable."""
        self._before = 0
        self._reported = 0
        self._not_before = -inf
        self._limited = False
        """True if the durable has a limit, or had one."""

    def opened(self, consumer: PullConsumer) -> None:
        """Note whether the durable has a limit, and which messages may have reached it before this."""
        cursor, progress = self._cursor(), consumer.progress
        was_limited = self._limited and progress.deliveries > 0  # else it is a new one
        self._limited = was_limited or consumer.limits.max_deliver > 0
        if self._tried_in is not cursor:
            self._tried_in, self._tried_to, self._delivered_before = cursor, progress.floor, 0
        self._delivered_before = max(self._delivered_before, progress.delivered)

    def lifted(self, limits: Sequence[str]) -> None:
        """Note that limits were removed from the durable: see `PullConsumer.lifted`."""
        self._limited |= any(limit.startswith("max_deliver") for limit in limits)

    def named(self, sequence: int) -> None:
        """Try a message, since an advisory names it."""
        if len(self._named) < MOST_NAMED:
            self._named[sequence] = None

    def may_have_reached_it(self, state: ConsumerState) -> bool:
        """Return True if messages that are not redelivered may have reached the limit. `state` is that of now."""
        return bool(state.given_up or state.lifted or self._before)

    def may_become_letters(self, state: ConsumerState) -> bool:
        """Return True if messages have reached the limit, and their dead letters can be stored."""
        return state.given_up > 0 and self._may_take()

    async def look(
        self,
        consumer: PullConsumer,
        state: ConsumerState,
        held: Sequence[StreamDelivery],
        in_hand: Collection[int],
        *,
        alone: bool,
    ) -> None:
        """Look for messages that reached the limit, if a check of the durable shows that there are some.

        `held` were in hand before that check and still are, `in_hand` are the sequences of all that are now. `alone`:
        see `Counts`. Raises `LinkError` if the link dies. Blocks for some seconds at most.
        """
        if state.cut_off is not None:
            return  # the server may report an old state
        self._limited |= state.given_up > 0
        given_up, all_here, exact = conclude(self._count(state, held, alone=alone))
        awaited = self._cursor().unsettled_without(in_hand) if all_here and state.redelivered else ()
        before, self._before = self._before, given_up
        proven = min(before, given_up)
        if not state.redelivered:
            self._named.clear()
            self._reported = 0
            self._tried_to = max(self._tried_to, state.passed)
        taken = False
        if self._may_take() and trio.current_time() >= self._not_before:
            try:
                taken = await self._take_all(consumer, state, awaited, proven, exact=exact)
            except SourceError as error:
                if error.reason == reasons.PERMISSION_DENIED:
                    self._not_before = trio.current_time() + DENIED_FOR
        if proven and not taken:
            self._log(proven, state)

    def _count(self, state: ConsumerState, held: Sequence[StreamDelivery], *, alone: bool) -> Counts:
        cursor = self._cursor()
        dead = cursor.failures.given_up  # the server may not have them any more
        here = [one for one in held if one.sequence not in dead] if state.redelivered else []
        once = 0
        if self._limited and not cursor.lacks(state.deliveries):
            once = sum(one.number > cursor.missed_to and one.deliveries == 1 for one in here)
        return Counts(state.redelivered, state.unacked, len(here), once, alone, self._limited)

    async def _take_all(
        self, consumer: PullConsumer, state: ConsumerState, awaited: Collection[int], proven: int, *, exact: bool
    ) -> bool:
        """Take the messages that are found. Return True if there are any. Raises `SourceError`."""
        cursor = self._cursor()
        found: dict[int, RawMessage] = {}
        await _fetch(consumer, cursor.failures.taken_over, found)
        retention = consumer.limits.retention
        if proven:
            await _fetch(consumer, awaited, found)
            if retention == "workqueue":
                await self._find_unacked(consumer, state, found)
        if cursor is not self._cursor():
            return False
        if found:
            self._take(list(found.values()))
        elif proven and exact and retention == "limits":
            return await self._try(consumer, state, proven)
        return bool(found)

    async def _find_unacked(self, consumer: PullConsumer, state: ConsumerState, found: dict[int, RawMessage]) -> None:
        """Add the messages that a work queue still has although they were delivered, and are not delivered again."""
        cursor, where = self._cursor(), never_acked(state)
        kept = await consumer.stored(where.start, where.stop - 1, MOST_AT_A_TIME)
        # If there are more than the server counts, an older server has forgotten some, so it is not certain.
        if len(kept) <= state.redelivered:
            found |= {_sequence(raw): raw for raw in kept if not cursor.is_settled(_sequence(raw))}

    async def _try(self, consumer: PullConsumer, state: ConsumerState, left: int) -> bool:
        """Take up to `left` messages whose termination shows that they had reached the limit.

        Return True if there are any.
        """
        cursor, taken = self._cursor(), False
        until = trio.current_time() + TRIES_FOR
        tried: dict[int, RawMessage] = {}
        named, self._named = self._named, {}
        await _fetch(consumer, [one for one in named if 0 < one <= state.delivered], tried)
        named_ones = list(tried)
        first = self._tried_to + 1
        if first > self._delivered_before:
            first = max(first, state.passed + 1)
        last = max(self._delivered_before, state.delivered if not state.unacked else 0)
        behind = await consumer.stored(first, last, MOST_AT_A_TIME) if first <= last else ()
        tried |= {_sequence(raw): raw for raw in behind}
        if tried:
            await trio.sleep(self._uniform(0.0, APART))
        counted = state.redelivered
        done = 0
        for sequence, raw in tried.items():
            if not left or cursor is not self._cursor() or trio.current_time() >= until:
                break
            if not cursor.knows(sequence):
                self._log(left, state)
                claimed = await consumer.claim(sequence, counted)
                if claimed is None:
                    break  # the durable is in use: the rest is tried when it is not
                if claimed:
                    self._take([raw])
                    taken = True
                    left -= 1
                    counted -= 1
            done += 1
            if sequence >= first and done > len(named_ones):
                self._tried_to = max(self._tried_to, sequence)
        self._named |= dict.fromkeys(named_ones[done:])
        return taken

    def _log(self, count: int, state: ConsumerState) -> None:
        """Log the number of messages at the limit if it has grown."""
        if count > self._reported:
            first = 1 if state.unacked or state.passed >= state.delivered else state.passed + 1
            self._report(count, first, state.delivered)
        self._reported = count


async def _fetch(consumer: PullConsumer, sequences: Iterable[int], found: dict[int, RawMessage]) -> None:
    """Add the messages that the stream still has."""
    for sequence in [one for one in sequences if one not in found][:MOST_AT_A_TIME]:
        for raw in await consumer.stored(sequence, sequence, 1):
            found[sequence] = raw


def _sequence(raw: RawMessage) -> int:
    return int(ack_reply.tokens(raw[1])[ack_reply.SEQUENCE])
