"""What a stream answers to the messages of a batch of fast ingest, read from a raw message.

The forms are those of ADR-50: `{"type": "ack", "seq": ..., "msgs": ...}` for what is stored, `{"type": "gap", ...}` and
`{"type": "err", "seq": ..., "error": {...}}` for what is not, and a PubAck with `batch` and `count` at the end. Errors
that come before a batch is looked at have the form of a PubAck's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from router_trio.errors import reasons
from router_trio.link import LinkListener
from router_trio.nats.info import ServerInfo
from router_trio.nats.jetstream.answers import AnswerError, read
from router_trio.nats.jetstream.pubacks import MAX_ANSWER, Refused, refusal
from router_trio.protocol import framing, headers
from router_trio.protocol.fast_ingest import answered
from router_trio.protocol.framing import LAST_SEQUENCE

SINCE = (2, 14)
"""The version of nats-server that has fast ingest. Previews of it behaved otherwise, and are not told apart."""

_NO_BATCH = frozenset({10205, 10206, 10207, 10208, 10211})
"""Error codes of nats-server that speak of the batch and not of the message: disabled, a bad pattern or id, an unknown
id, too many batches."""

LEAST_CONTROL_LINE = 1024
"""Bytes that a server has to take of a control line: the reply subject of a message in a batch is a long one."""

MAX_FLOW = 65_535


def is_known_to(info: ServerInfo) -> bool:
    """Return True if a server says that it has fast ingest, and has room for its reply subjects.

    One whose version can't be read is taken to have none: a PubAck for each message works with every server.
    """
    return info.major_minor is not None and info.major_minor >= SINCE and info.max_control_line >= LEAST_CONTROL_LINE


class FlowAcks:
    """Reads the answers to batches that came on one link, and tells a listener."""

    def __init__(self, listener: LinkListener) -> None:
        self._listener = listener

    def read(self, answers: Sequence[framing.RawMessage]) -> None:
        """Tell what each answer means for its batch. What is no answer is passed over.

        Of those in a row that only say how far a batch is stored, the last says it for all: a read brings several.
        """
        each = [(raw, about) for raw in answers if (about := answered(raw[0])) is not None]
        for (raw, (batch, sequence)), behind in zip_longest(each, each[1:]):
            if behind is not None and batch == behind[1][0] and _is_stored(raw) and _is_stored(behind[0]):
                continue
            try:
                self._read(raw, batch)
            except Refused as refused:
                self._listener.ingest_refused(batch, sequence, refused.reason, refused.detail, refused.retriable)
            except AnswerError:
                self._listener.ingest_ended(batch, None)

    def _read(self, raw: framing.RawMessage, batch: bytes) -> None:
        """Raises `Refused` if the message that this is about was refused, `AnswerError` if it is no answer."""
        if headers.status(framing.header_block(raw))[0] == 503:
            raise Refused(reasons.NO_RESPONDERS, "no stream takes this subject", True)
        answer = read(framing.payload(raw), MAX_ANSWER)
        kind = answer.text("type", "")
        error = answer.object("error")
        if error is not None:
            if error.number("err_code", 0, high=99_999) in _NO_BATCH:
                self._listener.ingest_ended(batch, None)
                return
            raise refusal(error)
        if kind == "ack":
            stored = answer.number("seq", high=LAST_SEQUENCE)
            self._listener.ingested(batch, stored, answer.number("msgs", 0, high=MAX_FLOW))
        elif kind == "gap":
            self._listener.ingest_ended(batch, None)
        else:
            self._listener.ingest_ended(batch, answer.number("count", high=LAST_SEQUENCE))


def _is_stored(raw: framing.RawMessage) -> bool:
    """Return True if an answer, as a server writes it, says how far a batch is stored."""
    _, _, header_size, size, tail = raw
    return not header_size and tail.startswith(b'{"type":"ack",', len(tail) - 2 - size)
