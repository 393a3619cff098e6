"""PubAcks: what a stream answers to a JetStream publish, read from a raw message.

The form is that of the JetStream API reference: `{"stream": ..., "seq": ..., "duplicate": ...}` or `{"error": ...}`;
a header status 503 means that no stream listens to the subject.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from router_trio import headers, protocol
from router_trio.link import LinkListener
from router_trio.message import PubAck, stored
from router_trio.quotes import excerpt

_STORED = re.compile(
    rb'\{"stream": ?"([^"\\]+)", ?"seq": ?(\d{1,20})(, ?"duplicate": ?true)?(?:, ?"domain": ?"[^"\\]*")?\}'
)

_PASSING = frozenset({10005, 10006, 10007, 10008, 10009, 10167})
"""Error codes of nats-server that a later try may not meet: no peers, no leader, temporarily unavailable, too many
requests at once. Limits of a stream are not among them, though the server answers those with status 503 as well."""

_TOO_LARGE = frozenset({10054, 10097})
"""The message is larger than the stream takes, or its headers are."""


MAX_REMEMBERED = 1024
"""Beginnings of PubAcks, a few for each stream that is published to. Then the memory starts anew."""


class PubAcks:
    """Reads the answers that came on one link, and tells a listener."""

    def __init__(self, listener: LinkListener) -> None:
        self._listener = listener
        self._streams: dict[bytes, str] = {}

    def read(self, batch: Sequence[protocol.RawMessage]) -> None:
        """Tell what each answer means for the publish whose number ends its subject."""
        streams = self._streams
        acked: list[PubAck] = []
        for raw in batch:
            subject, tail = raw[0], raw[4]
            number = subject[subject.rfind(b".") + 1 :]
            if not number.isdigit():
                continue
            # A stream's PubAcks differ in their last number alone: what is before it was read once already.
            last = tail.rfind(b":") + 1
            stream, sequence = streams.get(tail[:last]), tail[last:-3]
            if stream is not None and sequence.isdigit() and tail.endswith(b"}\r\n"):
                acked.append((int(number), stored(stream, int(sequence))))
                continue
            self._listener.acked(acked)
            acked = []
            self._read(int(number), raw)
        self._listener.acked(acked)

    def _read(self, order: int, raw: protocol.RawMessage) -> None:
        body = protocol.payload(raw)
        found = _STORED.fullmatch(body)
        if found is not None:
            stream = found[1].decode("utf-8", "replace")
            if found.end(2) == len(body) - 1 and not raw[2]:
                if len(self._streams) >= MAX_REMEMBERED:
                    self._streams.clear()
                tail = raw[4]
                self._streams[tail[: len(tail) - 3 - len(found[2])]] = stream
            self._listener.acked([(order, stored(stream, int(found[2]), found[3] is not None))])
            return
        code, description = headers.status(protocol.header_block(raw))
        if code == 503:
            self._listener.ack_refused(order, "no_responders", "no stream takes this subject", True)
            return
        try:
            answer = json.loads(body)
            error = answer.get("error")
            if error is None:
                fate = stored(str(answer["stream"]), int(answer["seq"]), bool(answer.get("duplicate")))
                self._listener.acked([(order, fate)])
                return
            detail = str(error.get("description", "error"))
            status, error_code = int(error.get("code", 0)), int(error.get("err_code", 0))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            told = f"not a PubAck: {code} {excerpt(description)}".strip()
            self._listener.ack_refused(order, "bad_answer", told, False)
            return
        retriable = status == 429 or error_code in _PASSING
        self._listener.ack_refused(order, _reason(error_code, detail), excerpt(detail), retriable)


def _reason(code: int, detail: str) -> str:
    if code in _TOO_LARGE:
        return "too_large"
    words = detail.lower()
    if "wrong last" in words or "expected stream" in words:
        return "wrong_expectation"
    if "maximum" in words or "insufficient" in words or "exceeded" in words:
        return "limit"
    return f"jetstream_{code}" if code else "jetstream"
