"""One accepted publish on its way to a server, and who is told its fate.

`CoreOperation` waits for a fence, `OperationWithAck` for a PubAck. `OperationBatch` is core publishes that were
accepted one after the other: they stay together for as long as nothing happens to them, which makes forwarding cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from router_trio.message import Fate


class Owner(Protocol):
    """Who is told the fate of an operation. Must not raise or block."""

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """`count` messages of this operation are the owner's, and met their final fate.

        Called exactly once for each message. `now` is the time of the outbox's clock, in seconds.
        """


class Operation:
    """What all kinds have. `order` numbers acceptance on this connection, `accepted_at` is the time of it.

    `with_ack` says which confirmation it waits for. `clean` is false once it met a failure (accepted while not
    connected), so that it is counted as failed or as succeeded, never as both.
    """

    # Hundreds of thousands of them may wait: each kind has only the fields that it needs.
    __slots__ = ("accepted_at", "clean", "order")

    with_ack: ClassVar[bool] = False
    count: int
    """How many messages it is. `order` is the number of the last."""

    def __init__(self, order: int, *, accepted_at: float, clean: bool) -> None:
        self.order = order
        self.accepted_at = accepted_at
        self.clean = clean

    @property
    def frame(self) -> bytes:
        """The whole protocol frame."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """The bytes of `frame`."""
        return len(self.frame)

    @property
    def subject(self) -> bytes:
        """The subject that it is published to."""
        return self.frame.split(b" ", 2)[1]

    def split(self) -> Sequence[Operation]:
        """One operation for each message."""
        return (self,)

    def settle(self, fate: Fate, now: float) -> None:
        """Tell the owner."""
        raise NotImplementedError


class CoreOperation(Operation):
    """One core publish."""

    __slots__ = ("frame", "owner")

    count = 1
    frame: bytes

    def __init__(self, order: int, frame: bytes, owner: Owner | None, accepted_at: float, clean: bool) -> None:
        # Not by the constructor above: one call more would be felt by each publish.
        self.order = order
        self.frame = frame
        self.owner = owner
        self.accepted_at = accepted_at
        self.clean = clean

    def settle(self, fate: Fate, now: float) -> None:
        """See `Operation`."""
        if self.owner is not None:
            self.owner.settle(self, 1, fate, now)


class OperationWithAck(CoreOperation):
    """One JetStream publish.

    `written_at` is when it was written last, `first_written_at` when for the first time on this link; `refused_for` is
    the reason of the last refusal, while it is tried again.
    """

    __slots__ = ("first_written_at", "refused_for", "written_at")

    with_ack = True

    def __init__(self, order: int, frame: bytes, owner: Owner | None, accepted_at: float, clean: bool) -> None:
        self.order = order
        self.frame = frame
        self.owner = owner
        self.accepted_at = accepted_at
        self.clean = clean
        self.first_written_at: float | None = None
        self.refused_for: str | None = None
        self.written_at = 0.0


class OperationBatch(Operation):
    """Core publishes with consecutive numbers, all accepted while connected. `owners` and `counts` go by their runs."""

    __slots__ = ("_frames", "_owners", "count", "size")

    size: int

    def __init__(self, *, accepted_at: float) -> None:
        super().__init__(0, accepted_at=accepted_at, clean=True)
        self.count = 0
        self.size = 0
        self._frames: list[bytes] = []
        self._owners: list[tuple[Owner, int]] = []

    def extend(self, order: int, frames: Sequence[bytes], size: int, owners: Sequence[tuple[Owner, int]]) -> None:
        """Add frames of `size` bytes in all, the last of which has this number; `owners` have so many of them each."""
        self.order = order
        self.count += len(frames)
        self.size += size
        self._frames += frames
        self._owners += owners

    def append(self, order: int, frame: bytes, size: int, owner: Owner) -> None:
        """Add one frame of `size` bytes, which has this number."""
        self.order = order
        self.count += 1
        self.size += size
        self._frames.append(frame)
        self._owners.append((owner, 1))

    @property
    def frame(self) -> bytes:
        """All frames, joined."""
        return b"".join(self._frames)

    def split(self) -> list[Operation]:
        """See `Operation`."""
        owners = (owner for owner, count in self._owners for _ in range(count))
        first = self.order - self.count + 1
        return [
            CoreOperation(first + index, frame, owner=owner, accepted_at=self.accepted_at, clean=self.clean)
            for index, (frame, owner) in enumerate(zip(self._frames, owners, strict=True))
        ]

    def settle(self, fate: Fate, now: float) -> None:
        """See `Operation`."""
        for owner, count in self._owners:
            owner.settle(self, count, fate, now)
