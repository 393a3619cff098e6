"""PubAcks: what a stream answers to a JetStream publish, read from a raw message.

The form is that of the JetStream API reference: `{"stream": ..., "seq": ..., "duplicate": ...}` or `{"error": ...}`;
a header status 503 means that no stream listens to the subject.
"""

from __future__ import annotations

import json
import re

from router_trio import headers, protocol
from router_trio.link import LinkListener

_STORED = re.compile(
    rb'\{"stream": ?"([^"\\]+)", ?"seq": ?(\d{1,20})(, ?"duplicate": ?true)?(?:, ?"domain": ?"[^"\\]*")?\}'
)

_PASSING = frozenset({10005, 10006, 10007, 10008, 10009, 10167})
"""Error codes of nats-server that a later try may not meet: no peers, no leader, temporarily unavailable, too many
requests at once. Limits of a stream are not among them, though the server answers those with status 503 as well."""


def read(raw: protocol.RawMessage, listener: LinkListener) -> None:
    """Tell the listener what this answer means for the publish whose number ends its subject."""
    subject = raw[0]
    number = subject[subject.rfind(b".") + 1 :]
    if not number.isdigit():
        return
    order = int(number)
    body = protocol.payload(raw)
    stored = _STORED.fullmatch(body)
    if stored is not None:
        listener.acked(order, stored[1].decode("utf-8", "replace"), int(stored[2]), stored[3] is not None)
        return
    code, description = headers.status(protocol.header_block(raw))
    if code == 503:
        listener.ack_refused(order, "no_responders", "no stream takes this subject", True)
        return
    try:
        answer = json.loads(body)
        error = answer.get("error")
        if error is None:
            listener.acked(order, str(answer["stream"]), int(answer["seq"]), bool(answer.get("duplicate")))
            return
        detail = str(error.get("description", "error"))
        status, error_code = int(error.get("code", 0)), int(error.get("err_code", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        listener.ack_refused(order, "bad_answer", f"not a PubAck: {code} {description}".strip(), False)
        return
    listener.ack_refused(order, _reason(error_code, detail), detail, status == 429 or error_code in _PASSING)


def _reason(code: int, detail: str) -> str:
    words = detail.lower()
    if "wrong last" in words or "expected stream" in words:
        return "wrong_expectation"
    if "maximum" in words or "insufficient" in words or "exceeded" in words:
        return "limit"
    return f"jetstream_{code}" if code else "jetstream"
