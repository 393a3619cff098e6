"""Fast ingest as one stream without replicas takes it (ADR-50): batches, and what is answered to their messages.

A reader of its own, so that it can catch a wrong writer. Synchronous; the caller gives the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from router_trio.testing.frames import Publish

MOST = 500
"""Messages at most that one answer is for, of all batches of a stream together."""

FORGOTTEN_AFTER = 10.0
"""Seconds without a message after which a batch is forgotten."""

_START, _APPEND, _COMMIT, _END, _PING = range(5)

DISABLED = {"code": 400, "err_code": 10205, "description": "batch publish is disabled"}
BAD_PATTERN = {"code": 400, "err_code": 10206, "description": "batch publish pattern is invalid"}
UNKNOWN = {"code": 400, "err_code": 10208, "description": "batch publish ID unknown"}


class _Message(NamedTuple):
    batch: str
    flow: int
    sequence: int
    operation: int


class _Batch:
    def __init__(self, flow: int, every: int) -> None:
        self.flow = flow
        self.every = every
        self.last = self.told = self.stream_sequence = 0
        self.at = 0.0


class Ingest:
    """The batches of one stream."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._batches: dict[str, _Batch] = {}

    def forget_batches(self) -> None:
        """Forget all batches, as a new leader that has nothing of them."""
        self._batches.clear()

    def answers_to(self, publish: Publish, now: float, store: Callable[[], bytes], allowed: bool) -> list[bytes]:
        """Take a message of a batch, stored by `store`, which returns a PubAck. Return the answers, in order."""
        self._batches = {name: one for name, one in self._batches.items() if now < one.at + FORGOTTEN_AFTER}
        message = _read(publish.reply)
        if not allowed or message is None:
            return [_error(BAD_PATTERN if allowed else DISABLED)]
        batch = self._batches.get(message.batch)
        if batch is None:
            if message.sequence != 1:
                return [_error(UNKNOWN)]
            every = min(MOST, message.flow) if not self._batches else 1
            batch = self._batches[message.batch] = _Batch(message.flow, every)
        batch.at = now
        if message.operation == _PING:
            return [_ack(batch)]
        if message.sequence != batch.last + 1:
            gap = {"type": "gap", "last_seq": batch.last + 1, "seq": message.sequence}
            found = [json.dumps(gap).encode()] if message.sequence > batch.last + 1 else []
            return [*found, self._committed(message.batch)]
        if message.operation == _END:
            return [self._committed(message.batch)]
        return self._stored(message, batch, json.loads(store()))

    def _stored(self, message: _Message, batch: _Batch, answer: dict[str, object]) -> list[bytes]:
        if "error" in answer:
            if message.sequence == 1:
                del self._batches[message.batch]
                return [_error(answer["error"])]
            told = {"type": "err", "seq": message.sequence, "error": answer["error"]}
            return [json.dumps(told).encode(), self._committed(message.batch)]
        answers = [_ack(batch)] if message.sequence == 1 and message.operation != _COMMIT else []
        batch.last = message.sequence
        assert isinstance(answer["seq"], int)
        batch.stream_sequence = answer["seq"]
        if message.operation == _COMMIT:
            return [self._committed(message.batch)]
        if batch.last >= batch.told + batch.every:
            batch.told += (batch.last - batch.told) // batch.every * batch.every
            most = min(max(1, MOST // len(self._batches)), batch.flow)
            batch.every = min(batch.every * 2, most) if batch.every < most else max(batch.every // 2, most)
            answers.append(_ack(batch))
        return answers

    def _committed(self, name: str) -> bytes:
        batch = self._batches.pop(name)
        told = {"stream": self._stream, "seq": batch.stream_sequence, "batch": name, "count": batch.last}
        return json.dumps(told).encode()


def _read(reply: bytes) -> _Message | None:
    words = reply.decode("utf-8", "replace").split(".")
    if len(words) < 7 or words[-1] != "$FI" or words[-4] not in ("fail", "ok"):
        return None
    _, batch, flow, _, sequence, operation, _ = words[-7:]
    if not (flow.isdecimal() and sequence.isdecimal() and operation in ("0", "1", "2", "3", "4")):
        return None
    found = _Message(batch, int(flow), int(sequence), int(operation))
    starts = found.operation == _START
    if (
        not 0 < len(batch) <= 64
        or found.sequence == 0
        or starts != (found.sequence == 1 and found.operation != _COMMIT)
    ):
        return None
    return found


def _ack(batch: _Batch) -> bytes:
    return json.dumps({"type": "ack", "seq": batch.told, "msgs": batch.every}).encode()


def _error(error: object) -> bytes:
    return json.dumps({"error": error}).encode()
