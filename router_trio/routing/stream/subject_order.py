"""Whose turn it is: what waits, source subject by source subject, behind a message that a destination refused. Pure.

Of a route by key each value of the key has the place of a subject here, and a message that failed for whatever reason
counts as refused.

A refused message goes back to its stream and comes again after its delay. What follows it on the same subject must not
pass it, so it waits in hand. When the refused one has come again, it is tried alone: while a destination refuses, one
message of a subject is enough to find that out. Once it is delivered, what waited goes on in the order of the stream,
as one run, up to the next one that was refused and has not come again. The same if it is given up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Generic, Protocol, TypeVar


class InTurn(Protocol):
    """A message of a stream: what it is in order with, its place in the stream, and where it is answered."""

    @property
    def order_key(self) -> bytes:
        """Its source subject, or the value of its route's key."""
        ...

    @property
    def sequence(self) -> int:
        """Its sequence in the stream."""
        ...

    @property
    def ack_subject(self) -> bytes:
        """The reply subject of the newest delivery, which acks it."""
        ...


D = TypeVar("D", bound=InTurn)
V = TypeVar("V")


@dataclass(slots=True)
class Awaited:
    """A refused message: when it comes again (`due`), and from when on it is late. `ack_subject` answers it.

    Both are infinite while it is in hand: other destinations have not answered yet.
    """

    ack_subject: bytes
    due: float
    until: float


class _BySequence(dict[int, V]):
    """A value for each sequence; `first` is the lowest sequence, infinite if there is none."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[int] = []

    def __setitem__(self, sequence: int, value: V) -> None:
        if sequence not in self:
            heappush(self._heap, sequence)
        super().__setitem__(sequence, value)

    @property
    def first(self) -> float:
        # What was taken out leaves the heap when it gets to its top.
        while self._heap and self._heap[0] not in self:
            heappop(self._heap)
        return self._heap[0] if self._heap else inf


class _Line(Generic[D]):
    """The line of a subject. `tried` is the message that is sent alone, `run` those released and not yet looked at.

    Without anything but a run nothing is waited for: it is there since what is under way may be behind it.
    """

    __slots__ = ("awaited", "held", "run", "tried")

    def __init__(self) -> None:
        self.awaited: _BySequence[Awaited] = _BySequence()
        self.held: _BySequence[D] = _BySequence()
        self.run: _BySequence[None] = _BySequence()
        self.tried: int | None = None

    @property
    def first_awaited(self) -> float:
        """The first that is awaited: nothing from there on may go."""
        return self.awaited.first

    @property
    def waits_for_nothing(self) -> bool:
        """Whether messages pass as if it were not there."""
        return not self.awaited and not self.held and self.tried is None


class SubjectOrder(Generic[D]):
    """All subjects of which something was refused and is not settled: `lines`, by subject.

    `held` counts what waits in hand, `awaited` what has to come again. What a method returns may go on, in that order;
    all that went on before it goes first.
    """

    __slots__ = ("awaited", "held", "lines")

    def __init__(self) -> None:
        self.lines: dict[bytes, _Line[D]] = {}
        self.awaited: int = 0
        self.held: int = 0

    @property
    def aside(self) -> int:
        """Return how many messages are held or awaited: neither makes room by itself."""
        return self.held + self.awaited

    @property
    def held_for_redeliveries(self) -> int:
        """How many wait for a message that is not in hand, or that another destination has yet to answer."""
        return sum(len(line.held) for line in self.lines.values() if line.tried is None)

    def describe(self) -> str:
        """Say how many messages wait, and what for. For who looks, while there are `lines`."""
        if not self.awaited and not self.held and all(line.waits_for_nothing for line in self.lines.values()):
            return "messages that waited for a failed message are about to be routed"
        if not self.awaited:
            again = "a failed message is being retried"
            behind = f", and {_messages(self.held)} of its subject {_wait(self.held)} behind it"
        else:
            again = f"{_messages(self.awaited)} {_wait(self.awaited)} to be redelivered and retried"
            behind = f", and {self.held} more of the same subjects {_wait(self.held)} behind"
        return again + behind if self.held else again

    def pass_by(self, delivery: D) -> bool:
        """Return True if a message under way is behind one that has to come again, or has and is tried or waits.

        Or behind one that waits no more and is not routed yet.
        """
        line = self.lines.get(delivery.order_key)
        if line is None:
            return False
        return delivery.sequence > min(line.first_awaited, line.tried or inf, line.held.first, line.run.first)

    def follows_run(self, delivery: D) -> bool:
        """Return True if a message is behind one that waits no more and is not looked at yet."""
        line = self.lines.get(delivery.order_key)
        return line is not None and delivery.sequence > line.run.first

    # --- what comes and goes ---

    def admit(self, delivery: D) -> D | None:
        """A message came, or is about to be routed: whose turn is it? Its own, that of one that waited, or nobody's.

        Asked twice, because something may be refused while it waits to be routed.
        """
        line = self.lines.get(delivery.order_key)
        if line is None:
            return delivery
        sequence = delivery.sequence
        may_go = sequence == line.tried or sequence in line.run
        line.run.pop(sequence, None)
        if line.waits_for_nothing:
            if not line.run:
                del self.lines[delivery.order_key]
            return delivery
        if line.awaited.pop(sequence, None) is not None:
            self.awaited -= 1
        # One before it may have been refused since, and have come again: then that waits in hand, or is tried.
        alone = line.tried is None or sequence <= line.tried
        if may_go and alone and sequence < min(line.held.first, line.first_awaited):
            return delivery
        if sequence == line.tried:
            line.tried = None
        line.held[sequence] = delivery
        self.held += 1
        return self._try_one(line)

    def await_redelivery(self, delivery: D, due: float = inf, until: float = inf) -> D | None:
        """A destination refused a message. Once it is sent back: when it is `due`, and from when on it is late."""
        line = self.lines.setdefault(delivery.order_key, _Line())
        self.awaited += delivery.sequence not in line.awaited
        line.awaited[delivery.sequence] = Awaited(delivery.ack_subject, due, until)
        if line.tried == delivery.sequence:
            line.tried = None
        return self._try_one(line)

    def release_behind(self, delivery: D) -> list[D]:
        """A message was delivered, given up, or failed for what it is."""
        line = self.lines.get(delivery.order_key)
        if line is None:
            return []
        awaited = line.awaited.pop(delivery.sequence, None) is not None
        self.awaited -= awaited
        if line.tried == delivery.sequence:
            line.tried = None
        elif line.tried is not None or not awaited:
            return []
        return self._let_go(delivery.order_key, line)

    def _try_one(self, line: _Line[D]) -> D | None:
        """The oldest that waits, if it waits for nobody any more."""
        if line.tried is not None or not line.held.first < line.first_awaited:
            return None
        line.tried = int(line.held.first)
        self.held -= 1
        return line.held.pop(line.tried)

    def _let_go(self, subject: bytes, line: _Line[D]) -> list[D]:
        end = line.first_awaited
        run = sorted(sequence for sequence in line.held if sequence < end)
        self.held -= len(run)
        for sequence in run:
            line.run[sequence] = None
        if not line.awaited and not line.run:
            del self.lines[subject]
        return [line.held.pop(sequence) for sequence in run]

    # --- what has to come again ---

    def expected(self) -> Iterator[Awaited]:
        """All that was sent back."""
        return (one for line in self.lines.values() for one in line.awaited.values() if one.due < inf)

    def count_due(self, now: float) -> int:
        """How many may come now."""
        return sum(one.due <= now for one in self.expected())

    def next_look(self, now: float) -> float:
        """When another one may come, or is late."""
        return min((one.due if one.due > now else one.until for one in self.expected()), default=inf)

    def all_due(self, now: float) -> None:
        """All that is awaited may come now: it was not sent back to this consumer, which starts with the oldest."""
        for one in self.expected():
            one.due = min(one.due, now)

    def wait_longer(self, now: float, within: float) -> None:
        """Nothing could come for a while: what is awaited gets `within` seconds more from when it may come."""
        for one in self.expected():
            one.until = max(one.until, max(one.due, now) + within)

    def late(self, now: float) -> list[int]:
        """Return what did not come in time, and may never come again: the oldest of each subject first."""
        if not self.awaited:
            return []
        late = [
            (sequence != line.first_awaited, sequence)
            for line in self.lines.values()
            for sequence, one in line.awaited.items()
            if one.until <= now
        ]
        return [sequence for _, sequence in sorted(late)]

    def give_up_waiting(self, gone: Collection[int]) -> list[D]:
        """These never come again: another process has settled them, or the stream has lost them."""
        in_turn: list[D] = []
        for subject, line in list(self.lines.items()):
            # Not what is in hand: it has come again meanwhile, and was refused again.
            awaited = [sequence for sequence in gone if sequence in line.awaited and line.awaited[sequence].due < inf]
            for sequence in awaited:
                del line.awaited[sequence]
            self.awaited -= len(awaited)
            if awaited and line.tried is None:
                in_turn += self._let_go(subject, line)
        return in_turn

    def give_back_newest(self, due: float, until: float) -> D | None:
        """Take out the newest of all that wait: it goes back to the stream, and is awaited like a refused one."""
        line = max(self.lines.values(), key=lambda one: max(one.held, default=0), default=None)
        if line is None or not line.held:
            return None
        delivery = line.held.pop(max(line.held))
        self.held -= 1
        line.awaited[delivery.sequence] = Awaited(delivery.ack_subject, due, until)
        self.awaited += 1
        return delivery

    # --- the end ---

    def stuck(self) -> list[D]:
        """Take out what waits for messages that are not in hand: if nothing comes any more, it would wait for ever."""
        found: list[D] = []
        for line in self.lines.values():
            if line.tried is None:
                found += line.held.values()
                self.held -= len(line.held)
                line.held.clear()
        return sorted(found, key=_sequence)

    def leave_hand(self) -> list[D]:
        """Take out all that waits, which is given back with all that is in hand. What is awaited still is."""
        found: list[D] = []
        for subject, line in [*self.lines.items()]:
            found += line.held.values()
            line.held.clear()
            line.run.clear()
            line.tried = None
            for one in line.awaited.values():
                if one.due == inf:
                    one.due = one.until = 0.0
            if not line.awaited:
                del self.lines[subject]
        self.held = 0
        return sorted(found, key=_sequence)

    def clear(self) -> list[D]:
        """Await nothing and hold nothing any more. Returns what waited."""
        held = [delivery for line in self.lines.values() for delivery in line.held.values()]
        self.lines.clear()
        self.awaited = self.held = 0
        return sorted(held, key=_sequence)


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def _wait(count: int) -> str:
    return "waits" if count == 1 else "wait"


def _sequence(delivery: InTurn) -> int:
    return delivery.sequence
