"""Replace the payload and headers of a copy, and set how long a stream keeps it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.output import header_of, payload_of
from router_trio.protocol import headers

Evaluate = Callable[[Any], Any]

TTL = "Nats-TTL"


class Transform:
    """The transforms of one destination. Each is computed from the original message, not from another's result.

    `largest` is the maximum number of bytes: the max_payload of the destination's server.
    """

    __slots__ = ("_lines", "_payload", "_set", "_unwanted", "changes_headers")

    def __init__(
        self,
        *,
        payload: Evaluate | None = None,
        set_headers: Sequence[tuple[str, Evaluate]] = (),
        remove: Sequence[str] = (),
        ttl: int = 0,
    ) -> None:
        """`ttl` is in seconds; 0 leaves the header unchanged."""
        self._payload = payload
        self._set = tuple(set_headers)
        self._lines = f"{TTL}: {ttl}s\r\n".encode() if ttl else b""
        names = [*remove, *(name for name, _ in set_headers), *([TTL] if ttl else [])]
        self._unwanted = headers.lines_of(names) if names else None
        self.changes_headers: bool = bool(names)

    def payload(self, facts: Any, payload: bytes, largest: int) -> bytes:
        """Return the payload of a copy, given the payload of the message. Raises EvaluationError."""
        return payload if self._payload is None else payload_of(self._payload(facts), largest, facts)

    def headers(self, facts: Any, block: bytes, largest: int) -> bytes:
        """Return the header block of a copy, given that of the message without control headers.

        Raises EvaluationError. Ids and traces are added later: nothing here removes or sets their headers.
        """
        if self._unwanted is None:
            return block
        if self._unwanted.search(block) is not None:
            block = headers.removed(block, self._unwanted)
        if not self._set and not self._lines:
            return block
        # A server also relays a block without an end of its last line.
        lines = [(block.rstrip(b"\r\n") if block else headers.VERSION) + b"\r\n"]
        for name, evaluate in self._set:
            try:
                lines.append(headers.line(name, header_of(evaluate(facts), largest)))
            except UnicodeEncodeError:
                raise EvaluationError(f"the value of the header {name} is no UTF-8") from None
        return b"%b%b\r\n" % (b"".join(lines), self._lines)
