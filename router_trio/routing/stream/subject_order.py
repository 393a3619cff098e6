"""The order of each source subject: messages wait behind one that a destination refused. Pure.

In a route by key, each value of the key is treated as a subject, and a message that failed for any reason counts as
refused.

A refused message is returned to its stream and redelivered after its delay. Later messages of the same subject must not
pass it, so they are held. When the refused message is redelivered, it is tried alone: while a destination refuses, one
message of a subject is enough to find that out. Once it is delivered or given up, the held messages are released in the
order of the stream, as one run, up to the next message that was refused and is not redelivered yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from heapq import heappop, heappush
from math import inf
from typing import Generic, Protocol, TypeVar


class InTurn(Protocol):
    """A message of a stream: its order key, its position in the stream, and its ack subject."""

    @property
    def order_key(self) -> bytes:
        """The source subject, or the value of the route's key."""
        ...

    @property
    def sequence(self) -> int:
        """The sequence in the stream."""
        ...

    @property
    def ack_subject(self) -> bytes:
        """The reply subject of the newest delivery, which acks the message."""
        ...


D = TypeVar("D", bound=InTurn)
V = TypeVar("V")


class Awaited(Generic[D]):
    """A refused message: when it is redelivered (`due`), and from when on that is late (`until`).

    Both are infinite while it is in hand, because other destinations have not answered yet. `ack_subject` acks it.
    `for_room`: it was not refused, but returned because there was no room to hold it. `returned` is the message itself
    if it was not refused, but returned at the end of its route: the next one may have another key for it.
    """

    __slots__ = ("ack_subject", "due", "for_room", "returned", "until")

    def __init__(
        self, ack_subject: bytes, due: float, until: float, *, for_room: bool = False, returned: D | None = None
    ) -> None:
        self.ack_subject: bytes = ack_subject
        self.due: float = due
        self.until: float = until
        self.for_room: bool = for_room
        self.returned: D | None = returned


class _BySequence(dict[int, V]):
    """Values by sequence; `first` is the lowest sequence, infinite if there is none."""

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
        # Removed sequences leave the heap when they reach its top.
        while self._heap and self._heap[0] not in self:
            heappop(self._heap)
        return self._heap[0] if self._heap else inf


class _Line(Generic[D]):
    """The line of a subject. `tried` is the message that is tried alone; `run` are released and not yet routed ones.

    If there is nothing but a run, no message waits: the line exists because messages in flight may be behind the run.
    """

    __slots__ = ("awaited", "held", "run", "tried")

    def __init__(self) -> None:
        self.awaited: _BySequence[Awaited[D]] = _BySequence()
        self.held: _BySequence[D] = _BySequence()
        self.run: _BySequence[None] = _BySequence()
        self.tried: int | None = None

    @property
    def first_awaited(self) -> float:
        """The first awaited sequence: no message from there on may be routed."""
        return self.awaited.first

    @property
    def waits_for_nothing(self) -> bool:
        """True if messages pass as if the line did not exist."""
        return not self.awaited and not self.held and self.tried is None


class SubjectOrder(Generic[D]):
    """All subjects with a refused message that is not settled: `lines`, by subject.

    `held` counts messages that wait in hand, `awaited` those that have to be redelivered. Messages that a method
    returns may be routed, in that order, after all that may be routed already.
    """

    __slots__ = ("_given_back", "awaited", "held", "lines")

    def __init__(self) -> None:
        self.lines: dict[bytes, _Line[D]] = {}
        self.awaited: int = 0
        self.held: int = 0
        self._given_back: set[bytes] = set()
        """The subjects with messages that were returned for lack of room, and perhaps others."""

    @property
    def aside(self) -> int:
        """Return the number of messages that are held or awaited: neither makes room by itself."""
        return self.held + self.awaited

    @property
    def held_for_redeliveries(self) -> int:
        """Return the number of messages that wait for one that is not in hand, or not answered by all destinations."""
        return sum(len(line.held) for line in self.lines.values() if line.tried is None)

    def describe(self) -> str:
        """Describe for people how many messages wait, and for what. Called while there are `lines`."""
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
        """Return True if an active message is behind one that is awaited, tried, held, or released but not routed."""
        line = self.lines.get(delivery.order_key)
        if line is None:
            return False
        return delivery.sequence > min(line.first_awaited, line.tried or inf, line.held.first, line.run.first)

    def follows_run(self, delivery: D) -> bool:
        """Return True if a message is behind one that was released and is not routed yet."""
        line = self.lines.get(delivery.order_key)
        return line is not None and delivery.sequence > line.run.first

    # --- received and settled ---

    def admit(self, delivery: D) -> D | None:
        """Admit a message that was received, or is about to be routed. Return the message whose turn it is, if any.

        That may be the message itself, or one that was held. Called at both times, because another message may be
        refused in between.
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
        # An earlier one may have been refused and redelivered since: then that is held, or tried.
        alone = line.tried is None or sequence <= line.tried
        if may_go and alone and sequence < min(line.held.first, line.first_awaited):
            return delivery
        if sequence == line.tried:
            line.tried = None
        line.held[sequence] = delivery
        self.held += 1
        return self._try_one(line)

    def await_redelivery(self, delivery: D, due: float = inf, until: float = inf) -> D | None:
        """Await a message that a destination refused. Once it is returned: when it is `due`, and `until` when."""
        line = self.lines.setdefault(delivery.order_key, _Line())
        self.awaited += delivery.sequence not in line.awaited
        line.awaited[delivery.sequence] = Awaited(delivery.ack_subject, due, until)
        if line.tried == delivery.sequence:
            line.tried = None
        return self._try_one(line)

    def await_returned(self, delivery: D) -> D | None:
        """Await a message that was returned at the end of its route, to be redelivered at once."""
        in_turn = self.await_redelivery(delivery, 0.0, 0.0)
        self.lines[delivery.order_key].awaited[delivery.sequence].returned = delivery
        return in_turn

    def order_by(self, key_of: Callable[[D], bytes]) -> None:
        """Await what was returned at the end of a route under the keys of the next one. Forget all other lines."""
        lines = self.lines.values()
        returned = [
            (sequence, one, one.returned)
            for line in lines
            for sequence, one in line.awaited.items()
            if one.returned is not None
        ]
        self.clear()
        for sequence, one, delivery in returned:
            self.lines.setdefault(key_of(delivery), _Line()).awaited[sequence] = one
        self.awaited = len(returned)

    def unanswered(self) -> list[int]:
        """Return the sequences of awaited messages that are in hand: not all destinations have answered for them."""
        return [sequence for line in self.lines.values() for sequence, one in line.awaited.items() if one.due == inf]

    def release_behind(self, delivery: D) -> list[D]:
        """Release messages behind one that was delivered, given up, or failed because of its content."""
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
        """Return the oldest held message, to be tried, if it need not wait any more."""
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

    # --- redeliveries ---

    def expected(self) -> Iterator[Awaited[D]]:
        """Yield the awaited messages that were returned to the stream."""
        return (one for line in self.lines.values() for one in line.awaited.values() if one.due < inf)

    def count_due(self, now: float) -> int:
        """Return the number of messages that may be redelivered now."""
        return sum(one.due <= now for one in self.expected())

    def next_look(self, now: float) -> float:
        """Return when the next one may be redelivered, or is late."""
        return min((one.due if one.due > now else one.until for one in self.expected()), default=inf)

    def all_due(self, now: float) -> None:
        """Make all awaited messages due now: they were not returned to this consumer, which starts with the oldest."""
        for one in self.expected():
            one.due = min(one.due, now)

    def wait_longer(self, now: float, within: float) -> None:
        """Wait `within` seconds more for awaited messages from their due times, since none could be received."""
        for one in self.expected():
            one.until = max(one.until, max(one.due, now) + within)

    def returned(self, last: float = inf) -> list[int]:
        """Return the sequences, up to `last`, of the awaited messages that were returned to the stream, in order."""
        if not self.awaited:
            return []
        lines = self.lines.values()
        return sorted(
            sequence for line in lines for sequence, one in line.awaited.items() if sequence <= last and one.due < inf
        )

    def due_times(self) -> dict[int, float]:
        """Return when each awaited message that was returned to the stream is redelivered, by sequence."""
        lines = self.lines.values()
        return {sequence: one.due for line in lines for sequence, one in line.awaited.items() if one.due < inf}

    def late(self, now: float) -> list[int]:
        """Return the sequences that are late, and may never be redelivered; the oldest of each subject first."""
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
        """Stop waiting for messages that another process has settled, or that the stream does not have any more."""
        in_turn: list[D] = []
        for subject, line in list(self.lines.items()):
            # Not messages in hand: they were redelivered meanwhile, and refused again.
            awaited = [sequence for sequence in gone if sequence in line.awaited and line.awaited[sequence].due < inf]
            for sequence in awaited:
                del line.awaited[sequence]
            self.awaited -= len(awaited)
            if awaited and line.tried is None:
                in_turn += self._let_go(subject, line)
        return in_turn

    def give_back_newest(self, due: float, until: float) -> D | None:
        """Take out the newest held message, which is returned to the stream and awaited like a refused one."""
        line = max(self.lines.values(), key=lambda one: max(one.held, default=0), default=None)
        if line is None or not line.held:
            return None
        delivery = line.held.pop(max(line.held))
        self.held -= 1
        line.awaited[delivery.sequence] = Awaited(delivery.ack_subject, due, until, for_room=True)
        self.awaited += 1
        self._given_back.add(delivery.order_key)
        return delivery

    def ask_back(self, now: float, within: float) -> list[Awaited[D]]:
        """Make messages due that were returned for lack of room, if they are next in their subject. Return them.

        Each is late `within` seconds from now.
        """
        found: list[Awaited[D]] = []
        for subject in sorted(self._given_back):
            line = self.lines.get(subject)
            if line is None or not any(one.for_room for one in line.awaited.values()):
                self._given_back.remove(subject)
                continue
            if line.tried is not None:
                continue
            for sequence in sorted(line.awaited):
                one = line.awaited[sequence]
                if not one.for_room:
                    break
                if one.due > now:
                    one.due, one.until = now, now + within
                    found.append(one)
        return found

    # --- the end ---

    def stuck(self) -> list[D]:
        """Take out messages held for ones that are not in hand: at the end they would wait forever."""
        found: list[D] = []
        for line in self.lines.values():
            if line.tried is None:
                found += line.held.values()
                self.held -= len(line.held)
                line.held.clear()
        return sorted(found, key=_sequence)

    def all_held(self) -> list[D]:
        """Return all held messages."""
        return [delivery for line in self.lines.values() for delivery in line.held.values()]

    def leave_hand(self) -> list[D]:
        """Take out all held messages, to be returned with all others in hand. Awaited ones are still awaited."""
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
        """Forget all lines. Return the held messages."""
        held = self.all_held()
        self.lines.clear()
        self.awaited = self.held = 0
        return sorted(held, key=_sequence)


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def _wait(count: int) -> str:
    return "waits" if count == 1 else "wait"


def _sequence(delivery: InTurn) -> int:
    return delivery.sequence
