"""Send an HTTP request on a stream that carries another protocol afterwards: a WebSocket, or a tunnel through a proxy.

h11 writes the request, and reads the answer up to the end of its headers. The caller limits the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import h11
import trio

from router_trio.errors import LinkError, ProtocolError, reasons
from router_trio.errors.quotes import LONGEST_QUOTE, excerpt, redact
from router_trio.nats.transport import SecureStream, certificate_required

MAX_ANSWER = 16 * 1024
"""Maximum bytes of the answer up to the end of its headers, including informational answers before it."""

_READ_SIZE = 4096

_HTTP = b"HTTP/"

Header = tuple[bytes, bytes]

USER_AGENT: Header = (b"User-Agent", b"router-trio")
"""Some firewalls refuse requests without it. If it begins with Mozilla, nats-server sends small frames."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request; `rest` are the bytes that were received after its headers."""

    status: int
    reason: str
    headers: Sequence[Header]
    rest: bytes

    def values(self, name: bytes) -> list[bytes]:
        """Return the comma-separated values of a header, given in lower case."""
        found = (value for key, value in self.headers if key == name)
        return [one.strip() for value in found for one in value.split(b",")]

    def __str__(self) -> str:
        """Return the status with its name, such as `404 Not Found`."""
        name = self.reason
        if not name:
            with suppress(ValueError):
                name = HTTPStatus(self.status).phrase
        return f"{self.status} {name}".rstrip()


async def request(
    stream: trio.SocketStream | SecureStream,
    method: bytes,
    target: bytes,
    headers: list[Header],
    *,
    of: str,
) -> Answer:
    """Send a request without a body, and return the answer with any status from 200 on, or 101.

    `of` names the peer in errors. These and the answer may repeat what was sent: see `Secrets`. Raises `LinkError`,
    `CertificateError` or `ProtocolError`. Waits for the peer without a limit.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER)
    data = connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    # A peer may answer and close the connection before it has read the request.
    with suppress(trio.BrokenResourceError):
        await stream.send_all(data)
    received = 0
    begin = b""
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                part = await stream.receive_some(_READ_SIZE)
                if not part:
                    where = "in the middle of its answer" if received else "without an answer"
                    raise LinkError(f"{of} closed the connection {where}", reason=reasons.CLOSED)
                received += len(part)
                begin = (begin + part)[:LONGEST_QUOTE]
                if not _HTTP.startswith(begin[: len(_HTTP)]):  # refused here, since h11 waits for an empty line
                    raise _no_http(of, begin)
                if received > MAX_ANSWER + _READ_SIZE:
                    raise _endless(of)
                connection.receive_data(bytes(part))
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                status = event.status_code
                if status >= HTTPStatus.OK or status == HTTPStatus.SWITCHING_PROTOCOLS:
                    reason = excerpt(redact(event.reason.decode("latin-1")))
                    return Answer(status, reason, list(event.headers), connection.trailing_data[0])
    except h11.RemoteProtocolError as error:
        if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            raise _endless(of) from None
        raise _no_http(of, begin) from None
    except trio.BrokenResourceError as error:
        # With TLS 1.3 a missing client certificate is noticed only now.
        raise certificate_required(error) or LinkError(
            f"the connection to {of} broke before its answer", reason=reasons.CLOSED
        ) from error


def _no_http(of: str, begin: bytes) -> ProtocolError:
    shown = excerpt(redact(begin.decode("utf-8", "backslashreplace")))
    cure = (
        "this is the client port of a nats-server, for nats://" if begin.startswith(b"INFO ") else "check host and port"
    )
    return ProtocolError(f"{of} did not answer in HTTP: it sent {shown}; {cure}")


def _endless(of: str) -> ProtocolError:
    return ProtocolError(f"{of} sent an HTTP answer of more than {MAX_ANSWER} bytes, without its body")
