"""Control headers: those by which a message steers the stream that stores it, or a server that it passes.

Whoever may publish a message may set them. Carried along, they would act where the message goes, with the router's
rights: `Nats-Rollup` purges what others have stored, `Nats-Schedule` installs endless publishes, `Nats-TTL` has the
message vanish. So none of them is carried to a destination unless the destination's `keep` names it.

Names are those of nats-server 2.15 (`server/stream.go`, `server/msgtrace.go`). A server reads them in exactly this
case, and only behind CRLF; here any case and any line feed will do, since other software may be less strict.

Pure and synchronous.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from router_trio.protocol import headers
from router_trio.protocol.headers import Headers

CONTROL_HEADERS: dict[str, str] = {
    "Nats-Rollup": "purges what the stream has stored before",
    "Nats-TTL": "has the stream delete the message after that time",
    "Nats-Schedule*": "has the stream publish messages later, again and again",
    "Nats-Batch-*": "makes the message a part of an atomic batch",
    "Nats-Incr": "adds to a counter of the stream",
    "Nats-Expected-*": "has the stream refuse the message unless it is in the state that is named",
    "Nats-Marker-Reason": "makes the message look like a marker of a deletion",
    "Nats-Trace-*": "has servers report where the message goes",
    "Nats-Pin-Id": "says to which reader a consumer gives its messages",
    "Nats-Stream-Source": "says how far a stream with sources has read one of them",
}
"""Every control header and what it does; a `*` at the end stands for any end."""


def _pattern(name: str) -> str:
    """A name, or the beginning of one, and what ends it."""
    return re.escape(name[:-1]) + "[^:\r\n]*:" if name.endswith("*") else re.escape(name) + "[ \t]*:"


_ANY = "|".join(map(_pattern, CONTROL_HEADERS))


def is_control_header(name: str) -> bool:
    """Return True for the name of a control header, in any case, or for one of `CONTROL_HEADERS`."""
    return name in CONTROL_HEADERS or re.fullmatch(_ANY, f"{name}:", re.IGNORECASE) is not None


class ControlHeaders:
    """The control headers that one destination does not take. `keep` names those that it takes, in any case."""

    __slots__ = ("_line", "search")

    def __init__(self, keep: Iterable[str] = ()) -> None:
        kept = "|".join(map(_pattern, keep))
        # The line feed comes first and in no case, so that the search goes from line to line and not by character.
        start = f"\n{f'(?!(?i:{kept}))' if kept else ''}(?i:{_ANY})".encode()
        self.search: Callable[..., re.Match[bytes] | None] = re.compile(start).search
        """`search(data, start, end)` finds one in a part of `data` that is a raw header block."""
        self._line = re.compile(start + headers.REST_OF_LINE)

    def removed(self, block: bytes) -> bytes:
        """Return a raw header block without them; `b""` if no header is left."""
        return headers.removed(block, self._line)

    def removed_from(self, given: Headers, origin: Headers) -> Headers:
        """Return what a handler made of the headers `origin`, without those of them that were merely carried along.

        A control header with another value is the handler's own, and stays. Raises `PublishError`.
        """
        headers.require_strings(given)
        came = set(origin.pairs())
        return Headers(pair for pair in given.pairs() if pair not in came or not self._takes_not(pair[0]))

    def _takes_not(self, name: str) -> bool:
        return self.search(f"\n{name}:".encode("utf-8", "surrogateescape")) is not None
