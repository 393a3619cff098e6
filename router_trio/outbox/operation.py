"""Accepted publishes on their way to a server, and the owners that are notified of their fate.

`CoreOperation` waits for a fence, `OperationWithAck` for a PubAck. An `OperationBatch` is core publishes that were
accepted one after the other: they stay together until something happens to one of them, which makes forwarding cheap.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import accumulate
from typing import ClassVar, Final, Protocol

from router_trio.message import FENCED, Fate
from router_trio.protocol.framing import addresses, readdressed
from router_trio.states import DURATION_BOUNDS, NANO, Histogram


class Owner(Protocol):
    """The owner of an operation, which is notified of its fate. Must not raise or block."""

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """Record the final fate of `count` messages of this operation that belong to the owner.

        Called exactly once for each message. `now` is the time of the outbox's clock, in seconds.
        """


class RouteOwner(Owner, Protocol):
    """The owner of a route's operations, which use the capacity of their destination."""

    @property
    def destination(self) -> tuple[str, str]:
        """The route and the template of the destination."""
        ...


class CountedOwner:
    """An owner whose fenced messages are recorded in the histogram `fenced` instead of by a call.

    With a thousand routes each one owns about one frame of a batch, and the call would cost more than what it does.
    """

    __slots__ = ("fenced",)

    def __init__(self, fenced: Histogram) -> None:
        self.fenced: Histogram = fenced

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """Record a fate other than fenced."""
        raise NotImplementedError


def _route_of(owner: Owner | None) -> str | None:
    destination: tuple[str, str] | None = getattr(owner, "destination", None)
    return None if destination is None else destination[0]


class NumberedOwner:
    """An owner of several publishes that needs to know which of them have a fate other than fenced."""

    __slots__ = ()

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """Record that publishes were fenced, or the fate of a single one."""
        raise NotImplementedError

    def settle_up_to(self, last: int, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """Record the fate of `count` publishes with consecutive numbers, `last` being the highest."""
        raise NotImplementedError


class FrameOwners:
    """The owners of the frames of a batch: `owners[i]` has the next `counts[i]` of them."""

    __slots__ = ("counts", "owners")

    def __init__(self, owners: list[Owner], counts: list[int]) -> None:
        self.owners: list[Owner] = owners
        self.counts: list[int] = counts

    def extend(self, others: FrameOwners) -> None:
        """Add the owners of further frames."""
        self.owners += others.owners
        self.counts += others.counts

    def each(self) -> Iterator[Owner]:
        """Yield the owner of each frame."""
        return (owner for owner, count in zip(self.owners, self.counts, strict=True) for _ in range(count))

    def owner_of(self, index: int) -> Owner:
        """Return the owner of a frame."""
        return self.owners[bisect_right([*accumulate(self.counts)], index)] if len(self.owners) > 1 else self.owners[0]

    def leave_out(self, positions: Sequence[int]) -> None:
        """Remove messages that have no frame. `positions` are theirs among all messages, in ascending order."""
        ends = [*accumulate(self.counts)]
        for position in positions:
            self.counts[bisect_right(ends, position)] -= 1

    def single_out(self, indexes: Sequence[int], replaced: Callable[[int, Owner], Owner]) -> None:
        """Give some frames owners of their own, made by `replaced(index, owner)`. `indexes` are in ascending order."""
        if not indexes:
            return
        owners, counts = self.owners, self.counts
        ends = [*accumulate(counts)]
        # Go backwards, so that the positions of the earlier runs stay valid.
        for index in reversed(indexes):
            run = bisect_right(ends, index)
            owner = owners[run]
            own = replaced(index, owner)
            if counts[run] == 1:
                owners[run] = own
                continue
            before, after = index - ends[run] + counts[run], ends[run] - index - 1
            cut = [(owner, before), (own, 1), (owner, after)]
            owners[run : run + 1] = [one for one, count in cut if count]
            counts[run : run + 1] = [count for _, count in cut if count]
            ends[run] = index

    def settle(self, operation: Operation, fate: Fate, now: float) -> None:
        """Notify each owner of the fate of the batch."""
        if fate is not FENCED:
            last = operation.order - operation.count
            for owner, count in zip(self.owners, self.counts, strict=True):
                last += count
                if isinstance(owner, NumberedOwner):
                    owner.settle_up_to(last, operation, count, fate, now)
                else:
                    owner.settle(operation, count, fate, now)
            assert last == operation.order, "each frame of a batch has one owner"
            return
        seconds = now - operation.accepted_at
        bucket, nanoseconds = bisect_left(DURATION_BOUNDS, seconds), int(seconds * NANO)
        for owner, count in zip(self.owners, self.counts, strict=True):
            if isinstance(owner, CountedOwner):
                # `Histogram.record`, inlined, with the same bucket for all: see `CountedOwner`.
                fenced = owner.fenced
                try:
                    fenced.buckets[bucket] += count
                except IndexError:
                    fenced.begin()[bucket] += count
                fenced.nanoseconds += nanoseconds * count
            else:
                owner.settle(operation, count, fate, now)


class Operation:
    """An accepted publish, or several. `order` is its number on this connection, `accepted_at` when it was accepted.

    `with_ack` is True if it waits for a PubAck, False if for a fence. `clean` becomes False when a failure is counted
    for it (such as being accepted while not connected), so that it is counted as failed or as succeeded, never as both.
    """

    # Hundreds of thousands may wait, so each kind has only the fields that it needs.
    __slots__ = ("accepted_at", "clean", "order")

    with_ack: ClassVar[bool] = False
    count: int
    """Number of messages. `order` is the number of the last one."""

    order: int
    accepted_at: float
    clean: bool

    @property
    def frame(self) -> bytes:
        """The complete protocol frame."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Length of `frame`, in bytes."""
        return len(self.frame)

    @property
    def subject(self) -> bytes:
        """The subject of the publish."""
        frame = self.frame
        start = frame.find(b" ") + 1
        return frame[start : frame.find(b" ", start)]

    @property
    def lane(self) -> Hashable:
        """Key of the publishes that keep their order with each other: the subject, unless a subclass overrides it."""
        return self.subject

    @property
    def origin(self) -> tuple[bytes, str | None]:
        """The subject of the first message, and the name of the route that publishes it, or None if no route does."""
        raise NotImplementedError

    @property
    def source_sequence(self) -> int | None:
        """The sequence of its source message, if it is the copy of one message of a stream."""
        return None

    @property
    def on_its_way_at(self) -> float:
        """Time since which no server has answered it: when it was accepted or, if it was refused, written last."""
        return self.accepted_at

    @property
    def redelivered(self) -> int:
        """Number of messages that came from a stream, which redelivers them if they are not confirmed."""
        return 0

    def split(self) -> Sequence[Operation]:
        """Return one operation for each message."""
        return (self,)

    def settle(self, fate: Fate, now: float) -> None:
        """Notify the owner of the fate."""
        raise NotImplementedError


class CoreOperation(Operation):
    """A core publish."""

    __slots__ = ("frame", "owner")

    count = 1
    frame: bytes

    def __init__(self, order: int, frame: bytes, owner: Owner | None, accepted_at: float, clean: bool) -> None:
        self.order = order
        # A field is faster to read than the property that it overrides, here and in `OperationBatch`.
        self.frame = frame  # pyright: ignore[reportIncompatibleMethodOverride]
        self.owner: Owner | None = owner
        self.accepted_at = accepted_at
        self.clean = clean

    @property
    def origin(self) -> tuple[bytes, str | None]:
        return self.subject, _route_of(self.owner)

    @property
    def source_sequence(self) -> int | None:
        sequence: int | None = getattr(self.owner, "place_in_stream", None)
        return sequence

    @property
    def redelivered(self) -> int:
        return int(getattr(self.owner, "from_stream", False))

    def settle(self, fate: Fate, now: float) -> None:
        owner = self.owner
        if fate is FENCED and isinstance(owner, CountedOwner):
            owner.fenced.record(now - self.accepted_at)
        elif owner is not None:
            owner.settle(self, 1, fate, now)


NOT_RESENT: Final = 0
RESENT_ON_NEXT_LINK: Final = 1
RESENT_ON_SAME_LINK: Final = 2


class OperationWithAck(CoreOperation):
    """A JetStream publish.

    - `written_at`: when it was last written; `first_written_at`: when it was first written on this link, or was to be
      and was held back instead.
    - `refused_for`: reason and detail of the last refusal, while it is being retried.
    - `refused_with`: reason and detail of a refusal that will be final unless the next answer differs.
    - `asked_as`: the number in its reply subject since then, which no other client can have guessed.
    - `resent`: `NOT_RESENT`, or it was written before and not answered: last on an earlier link, or on this one.
    - `unanswered_since`: when it was first written without being answered; a stream may have stored it since.
    - `puback_from`: whose PubAcks count regardless of the subject. Either the name of a stream, or a destination (see
      `capacity_key`), which stands for the streams that take every subject of its mapping. With None only the streams
      that take the subject count.
    """

    __slots__ = (
        "asked_as",
        "first_written_at",
        "puback_from",
        "refused_for",
        "refused_with",
        "resent",
        "unanswered_since",
        "written_at",
    )

    with_ack = True

    def __init__(
        self,
        order: int,
        frame: bytes,
        owner: Owner | None,
        accepted_at: float,
        clean: bool,
        puback_from: Hashable | None = None,
    ) -> None:
        # Does not call the constructor above, which would cost every publish one more call.
        self.order = order
        self.frame = frame  # pyright: ignore[reportIncompatibleMethodOverride]
        self.owner = owner
        self.accepted_at = accepted_at
        self.clean = clean
        self.first_written_at: float | None = None
        self.refused_for: tuple[str, str] | None = None
        self.refused_with: tuple[str, str] | None = None
        self.asked_as: int | None = None
        self.resent: int = NOT_RESENT
        self.unanswered_since: float | None = None
        self.written_at: float = 0.0
        self.puback_from: Hashable | None = puback_from

    def send_again(self) -> None:
        """Mark it to be written again although a stream may have stored it; the PubAck shows which."""
        self.resent = RESENT_ON_SAME_LINK
        if self.unanswered_since is None:
            self.unanswered_since = self.written_at

    def ask(self, number: int, reason: str, detail: str) -> None:
        """Have it written again with this number in its reply subject, after a refusal that may not be its stream's."""
        self.refused_with = reason, detail
        self._answer_to(number)
        self.asked_as = number
        self.send_again()

    def stop_asking(self) -> None:
        """Let the next answer decide: another server may take it, and its PubAck may be late."""
        self.refused_with = None
        if self.asked_as is not None:
            self._answer_to(self.order)
            self.asked_as = None

    @property
    def may_be_denied_twice(self) -> bool:
        """Return True if it was written before on this link and not answered, so that the server may deny both.

        An answer shows that it was not denied, and one that was held back may be written for the first time, or for the
        first time on this link.
        """
        again = self.resent == RESENT_ON_SAME_LINK and self.first_written_at != self.written_at
        return again and self.refused_for is None

    @property
    def on_its_way_at(self) -> float:
        return self.accepted_at if self.refused_for is None else self.written_at

    def expect_puback_at(self, inbox: bytes) -> None:
        """Direct the PubAck to `inbox`, with the number of the publish as its last token."""
        self.frame = readdressed(self.frame, b"%b.%d" % (inbox, self.order))

    def _answer_to(self, number: int) -> None:
        inbox = addresses(self.frame)[1].rpartition(b".")[0]
        self.frame = readdressed(self.frame, b"%b.%d" % (inbox, number))

    @property
    def lane(self) -> Hashable:
        """Key of the publishes that keep their order: on a route by key the key's value, regardless of the subject."""
        key: bytes | None = getattr(self.owner, "key", None)
        return (self.capacity_key, key) if key else self.subject

    @property
    def capacity_key(self) -> Hashable:
        """Key of the capacity that it uses: the destination of its route, else the first token of its subject."""
        own: Hashable = getattr(self.owner, "destination", None)
        if own is not None:
            return own
        frame = self.frame
        start = frame.find(b" ") + 1
        subject = frame[start : frame.find(b" ", start)]
        return subject.partition(b".")[0]


class OperationBatch(Operation):
    """Core publishes with consecutive numbers, all accepted while connected."""

    __slots__ = ("_frames", "_owners", "count", "size")

    size: int

    def __init__(self, order: int, frames: Sequence[bytes], size: int, owners: FrameOwners, accepted_at: float) -> None:
        """Create a batch of frames of `size` bytes in total, the last one with number `order`. Takes over `owners`."""
        self.order = order
        self.accepted_at = accepted_at
        self.clean = True
        self.count = len(frames)
        self.size = size
        self._frames = [*frames]
        self._owners = owners

    def extend(self, order: int, frames: Sequence[bytes], size: int, owners: FrameOwners) -> None:
        """Add frames of `size` bytes in total, the last one with number `order`."""
        self.order = order
        self.count += len(frames)
        self.size += size  # pyright: ignore[reportIncompatibleMethodOverride]
        self._frames += frames
        self._owners.extend(owners)

    def append(self, order: int, frame: bytes, size: int, owner: Owner) -> None:
        """Add one frame of `size` bytes, with number `order`."""
        self.order = order
        self.count += 1
        self.size += size  # pyright: ignore[reportIncompatibleMethodOverride]
        self._frames.append(frame)
        self._owners.owners.append(owner)
        self._owners.counts.append(1)

    @property
    def frame(self) -> bytes:
        """All frames, joined."""
        return b"".join(self._frames)

    @property
    def origin(self) -> tuple[bytes, str | None]:
        frame = self._frames[0]
        start = frame.find(b" ") + 1
        return frame[start : frame.find(b" ", start)], _route_of(self._owners.owners[0])

    @property
    def redelivered(self) -> int:
        return sum(getattr(owner, "from_stream", False) for owner in self._owners.each())

    def split(self) -> list[Operation]:
        first = self.order - self.count + 1
        return [
            CoreOperation(first + index, frame, owner=owner, accepted_at=self.accepted_at, clean=self.clean)
            for index, (frame, owner) in enumerate(zip(self._frames, self._owners.each(), strict=True))
        ]

    def settle(self, fate: Fate, now: float) -> None:
        self._owners.settle(self, fate, now)
