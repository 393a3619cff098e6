"""Control headers: headers by which a message controls the stream that stores it, or a server that relays it.

Any client that may publish a message may set them. If they were forwarded, they would take effect at the destination
with the router's permissions: `Nats-Rollup` purges other clients' messages, `Nats-Schedule` installs endless publishes,
`Nats-TTL` makes the message expire. So none of them is forwarded to a destination unless its `keep` names it.

The names are those of nats-server 2.15 (`server/stream.go`, `server/msgtrace.go`). A server accepts them only in this
exact case, after CRLF and with a colon. But when it publishes a schedule, it cuts everything from such a prefix behind
any LF up to the next CRLF. So here they match in any case, behind a bare LF, and without a colon.

Pure and synchronous.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from router_trio.protocol import headers
from router_trio.protocol.headers import Headers

CONTROL_HEADERS: dict[str, str] = {
    "Nats-Rollup": "purges earlier messages of the stream",
    "Nats-TTL": "makes the stream delete the message after this time",
    "Nats-Schedule*": "makes the stream publish messages later, possibly repeatedly",
    "Nats-Batch-*": "makes the message part of an atomic batch",
    "Nats-Incr": "adds to a counter of the stream",
    "Nats-Expected-*": "makes the stream refuse the message unless the stream is in the given state",
    "Nats-Marker-Reason": "makes the message look like a delete marker",
    "Nats-Trace-*": "makes servers report the path of the message",
    "Nats-Pin-Id": "names the client to which a pinned consumer delivers",
    "Nats-Stream-Source": "records the position of a stream in one of its sources",
}
"""All control headers with their effects. A name that ends in `*` stands for all names with that prefix."""


def _pattern(name: str) -> str:
    """Return a pattern for a name, or for the prefix of names."""
    return re.escape(name[:-1]) if name.endswith("*") else re.escape(name) + r"(?![^:\s])"


_ANY = "|".join(map(_pattern, CONTROL_HEADERS))


def is_control_header(name: str) -> bool:
    """Return True for the name of a control header, in any case, or for a key of `CONTROL_HEADERS`."""
    return name in CONTROL_HEADERS or re.match(_ANY, name, re.IGNORECASE) is not None


class ControlHeaders:
    """The headers that are removed for one destination: `more`, and the control headers but those in `keep`.

    Their names match in any case.
    """

    __slots__ = ("_line", "search")

    def __init__(self, keep: Iterable[str] = (), more: Iterable[str] = ()) -> None:
        kept = "|".join(map(_pattern, keep))
        unwanted = "|".join([_ANY, *map(_pattern, more)])
        # The pattern starts with a literal line feed, so that the search skips from line to line.
        start = f"\n{f'(?!(?i:{kept}))' if kept else ''}(?i:{unwanted})".encode()
        self.search: Callable[..., re.Match[bytes] | None] = re.compile(start).search
        """`search(data, start, end)` finds a control header in the raw header block `data[start:end]`."""
        self._line = re.compile(start + headers.REST_OF_LINE)

    def removed(self, block: bytes) -> bytes:
        """Return a raw header block without these control headers; `b""` if no header is left."""
        return headers.removed(block, self._line)

    def removed_from(self, given: Headers, origin: Headers) -> Headers:
        """Return the headers `given` by a handler without the control headers that are unchanged from `origin`.

        A control header that the handler has set to another value is kept. Raises `PublishError` if a name or a value
        is not a string.
        """
        headers.require_strings(given)
        received = set(origin.pairs())
        return Headers(pair for pair in given.pairs() if pair not in received or not self._removes(pair[0]))

    def _removes(self, name: str) -> bool:
        return self.search(f"\n{name}:".encode("utf-8", "surrogateescape")) is not None
