"""A blocking NATS connection on a bare socket, for the load generator: no parser, no library, nothing to slow it down.

Messages are counted, not parsed: every payload holds exactly one `MARK`, and the protocol around it holds none.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any
from urllib.parse import urlsplit

MARK = b"#"
READ_SIZE = 1 << 20
ANSWER_WITHIN = 15.0
_SOCKET_BUFFER = 4 * 1024 * 1024


class WireError(Exception):
    """The server answered with an error, or closed the connection."""


class Wire:
    """A connection. It answers no PING: the benchmark's server is configured to send none."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._inbox = b""
        target = urlsplit(url)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        self.socket.settimeout(ANSWER_WITHIN)
        self.socket.connect((target.hostname or "127.0.0.1", target.port or 4222))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        options = {"verbose": False, "pedantic": False, "headers": True, "protocol": 1, "name": "load"}
        self.socket.sendall(b"CONNECT %b\r\n" % json.dumps(options).encode())
        # The server may send another INFO behind the first PONG.
        self.fence()
        self.fence()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def fence(self) -> None:
        """Send PING and wait for its PONG; discard all that arrives before it."""
        self.socket.sendall(b"PING\r\n")
        got = b""
        while b"PONG\r\n" not in got:
            got = got[-16:] + self.receive()

    def receive(self) -> bytes:
        """Return the received data, at least a byte. Raises `WireError` at the end or at an -ERR."""
        data = self.socket.recv(READ_SIZE)
        if not data:
            raise WireError("the server closed the load generator's connection; see the server's log")
        if data.startswith(b"-ERR"):
            raise WireError(data[:200].decode("utf-8", "replace"))
        return data

    def subscribe(self, subject: str) -> None:
        """Subscribe; return when the server has the subscription."""
        self.socket.sendall(b"SUB %b 1\r\n" % subject.encode())
        self.fence()

    def request(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request to JetStream's API, on a connection that has no subscription of its own.

        Raises `WireError` if the answer is an error.
        """
        if not self._inbox:
            self._inbox = b"_INBOX.load.%b" % os.urandom(8).hex().encode()
            self.subscribe(self._inbox.decode())
        text = json.dumps(body).encode() if body is not None else b""
        self.socket.sendall(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), self._inbox, len(text), text))
        got = b""
        while not _is_whole(got):
            # A server measures the round trip once, soon after the connect, whatever its ping interval.
            got = (got + self.receive()).removeprefix(b"PING\r\n")
        answer: dict[str, Any] = json.loads(got.split(b"\r\n")[1]) if got.startswith(b"MSG") else {"error": {}}
        if "error" in answer:
            raise WireError(f"{subject}: {answer['error'].get('description', 'no answer')}")
        return answer


def _is_whole(frame: bytes) -> bool:
    line, separator, rest = frame.partition(b"\r\n")
    return bool(separator) and len(rest) >= int(line.rsplit(b" ", 1)[1]) + 2


def payload_of(size: int) -> bytes:
    """Return a payload with one mark, of at least a byte."""
    return b"x" * (size - 1) + MARK
