"""A recorder of all that a link reports, and operations to send on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from router_trio.message import PubAck
from router_trio.outbox.operation import CoreOperation, Operation, OperationWithAck
from router_trio.protocol.framing import RawMessage, publish

INBOX = b"_INBOX.contract"
WITHIN = 5.0


class Recorder:
    """A `LinkListener`, and a `Deliver`: records its calls, and lets a test wait for them."""

    def __init__(self) -> None:
        self.batches: list[list[RawMessage]] = []
        self.acks: dict[int, tuple[str | None, int | None, bool]] = {}
        self.refusals: dict[int, tuple[str, bool]] = {}
        self.refused_by: dict[int, str] = {}
        """The stream that each refusal names, `""` for none."""
        self.expected: set[str] = set()
        self.denied: list[tuple[bytes, str]] = []
        self.unknown: list[str] = []
        """Denials that could not be attributed."""
        self.events: list[str] = []
        self.lame_ducks = 0
        self.servers: list[str] = []
        self._told = trio.Event()

    def __call__(self, batch: list[RawMessage]) -> None:
        self.batches.append(batch.copy())
        self.events.append("delivered")
        self._tell()

    @property
    def messages(self) -> list[RawMessage]:
        """All delivered messages, in order."""
        return [raw for batch in self.batches for raw in batch]

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        self.acks |= {order: (fate.stream, fate.sequence, fate.duplicate) for order, fate in pubacks}
        self._tell()

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        self.refusals[order] = (reason, retriable)
        self.refused_by[order] = stream
        self._tell()

    def expects(self, stream: str) -> bool:
        return stream in self.expected

    def publish_denied(self, subject: bytes, detail: str) -> None:
        self.denied.append((subject, detail))
        self._tell()

    def reply_denied(self, reply: bytes, detail: str) -> None:
        self.denied.append((reply, detail))
        self._tell()

    def something_denied(self, detail: str) -> None:
        self.unknown.append(detail)
        self._tell()

    def read_begins(self) -> None:
        pass

    def read_done(self) -> None:
        self.events.append("handed out")
        self._tell()

    def lame_duck(self) -> None:
        self.lame_ducks += 1
        self._tell()

    def discovered(self, servers: Sequence[str]) -> None:
        self.servers = list(servers)
        self._tell()

    async def until(self, condition: Callable[[Recorder], object], *, within: float = WITHIN) -> None:
        """Wait until the condition is true of this recorder. Raises `trio.TooSlowError` after `within` seconds."""
        with trio.fail_after(within):
            while not condition(self):
                await self._told.wait()

    async def until_delivered(self, count: int, *, within: float = WITHIN) -> list[RawMessage]:
        """Return all messages, as soon as there are `count`. See `until`."""
        await self.until(lambda recorder: len(recorder.messages) >= count, within=within)
        return self.messages

    def _tell(self) -> None:
        self._told.set()
        self._told = trio.Event()


def operation(order: int, subject: bytes, payload: bytes = b"", *, headers: bytes = b"") -> CoreOperation:
    """Return a core publish."""
    frame = publish(subject, payload, headers=headers)
    return CoreOperation(order, frame, owner=None, accepted_at=0.0, clean=True)


def operation_with_ack(order: int, subject: bytes, payload: bytes = b"", *, headers: bytes = b"") -> Operation:
    """Return a JetStream publish, whose PubAck is expected at the link's inbox."""
    frame = publish(subject, payload, reply=b"%b.%d" % (INBOX, order), headers=headers)
    return OperationWithAck(order, frame, owner=None, accepted_at=0.0, clean=True)
