"""PubAcks: what a stream answers to a JetStream publish, read from a raw message.

The form is that of the JetStream API reference: `{"stream": ..., "seq": ..., "duplicate": ...}` or `{"error": ...}`;
a header status 503 means that no stream listens to the subject.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from router_trio import headers, protocol
from router_trio.link import LinkListener
from router_trio.message import PubAck, stored
from router_trio.nats.answers import AnswerError, read
from router_trio.protocol import LAST_SEQUENCE

_STORED = re.compile(rb'\{"stream": ?"[^"\\]+", ?(?:"domain": ?"[^"\\]*", ?)?"seq": ?([1-9][0-9]{0,18})\}')

_PASSING = frozenset({10005, 10006, 10007, 10008, 10009, 10167})
"""Error codes of nats-server that a later try may not meet: no peers, no leader, temporarily unavailable, too many
requests at once. Limits of a stream are not among them, though the server answers those with status 503 as well."""

_JETSTREAM = range(10_000, 10_500)
"""Error codes of nats-server."""

_TOO_LARGE = frozenset({10054, 10097})
"""The message is larger than the stream takes, or its headers are."""


MAX_ANSWER = 8 * 1024
"""Bytes of a PubAck: it names a stream and its domain, and describes an error."""

MAX_DIGITS = 18
"""Of the number of a publish. Who makes a thousand each microsecond gets there in thirty years."""

_ZERO = ord("0")

MAX_REMEMBERED = 1024
"""Beginnings of PubAcks, a few for each stream that is published to. Then the memory starts anew."""


class PubAcks:
    """Reads the answers that came on one link, and tells a listener."""

    def __init__(self, listener: LinkListener) -> None:
        self._listener = listener
        self._streams: dict[bytes, str] = {}

    def read(self, batch: Sequence[protocol.RawMessage]) -> None:
        """Tell what each answer means for the publish whose number ends its subject.

        Whose stream stored it is in the fate that the listener gets: who knows which stream it has to be checks it
        there.
        """
        streams = self._streams
        acked: list[PubAck] = []
        for raw in batch:
            subject, tail = raw[0], raw[4]
            number = subject[subject.rfind(b".") + 1 :]
            if not number.isdigit() or len(number) > MAX_DIGITS:
                continue
            # A stream's PubAcks differ in their last number alone: what is before it was read once already.
            last = tail.rfind(b":") + 1
            stream = streams.get(tail[:last])
            if stream is not None:
                # Not before: compiled, a slice must not end before it begins, and something else may end with a colon.
                sequence = tail[last:-3]
                if sequence.isdigit() and tail.endswith(b"}\r\n") and sequence[0] != _ZERO:
                    acked.append((int(number), stored(stream, int(sequence))))
                    continue
            self._listener.acked(acked)
            acked = []
            self._read(int(number), raw)
        self._listener.acked(acked)

    def _read(self, order: int, raw: protocol.RawMessage) -> None:
        body = protocol.payload(raw)
        code, description = headers.status(protocol.header_block(raw))
        if code == 503:
            self._listener.ack_refused(order, "no_responders", "no stream takes this subject", True)
            return
        try:
            answer = read(body, MAX_ANSWER)
            error = answer.object("error")
            if error is None:
                stream, sequence = answer.text("stream"), answer.number("seq", low=1, high=LAST_SEQUENCE)
                duplicate = answer.flag("duplicate")
            else:
                detail = error.description("description") or "error"
                status, error_code = error.number("code", 0, high=999), error.number("err_code", 0, high=99_999)
        except AnswerError as wrong:
            told = f"not a PubAck: {code} {description}" if code else f"not a PubAck: {wrong}"
            self._listener.ack_refused(order, "bad_answer", told, False)
            return
        if error is None:
            if not duplicate:
                self._remember(body, raw, stream)
            self._listener.acked([(order, stored(stream, sequence, duplicate))])
        else:
            retriable = status == 429 or error_code in _PASSING
            self._listener.ack_refused(order, _reason(error_code, detail), detail, retriable)

    def _remember(self, body: bytes, raw: protocol.RawMessage, stream: str) -> None:
        found = _STORED.fullmatch(body)
        if found is not None and not raw[2] and not raw[1]:
            if len(self._streams) >= MAX_REMEMBERED:
                self._streams.clear()
            tail = raw[4]
            self._streams[tail[: len(tail) - 3 - len(found[1])]] = stream


def _reason(code: int, detail: str) -> str:
    if code in _TOO_LARGE:
        return "too_large"
    words = detail.lower()
    if "wrong last" in words or "expected stream" in words:
        return "wrong_expectation"
    if "maximum" in words or "insufficient" in words or "exceeded" in words:
        return "limit"
    # It becomes the label of a counter: others than those that there may be are not told apart.
    return f"jetstream_{code}" if code in _JETSTREAM else "jetstream"
