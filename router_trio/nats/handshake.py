"""The handshake of a link: INFO, TLS, CONNECT, and the PONG with which the server confirms it. Trio only.

Before these, a tunnel through a proxy and a WebSocket may be opened; TLS of a WebSocket precedes its request.

What the server sends is interpreted here before anything is answered. The handshake also enforces TLS: where the
configuration requires it, nothing is written in clear text, and nothing that was read in clear text is used after the
upgrade.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

import trio

from router_trio.errors import (
    AuthorizationError,
    CertificateError,
    LinkError,
    ProtocolError,
    UnexpectedError,
    reasons,
)
from router_trio.nats.credentials import SECRET_FIELDS, Login, login
from router_trio.nats.info import ServerInfo, parse_info, quote
from router_trio.nats.secrets import Secrets, secrets_of
from router_trio.nats.transport import (
    CURE,
    WEBSOCKET_CURE,
    SecureStream,
    address,
    certificate_required,
    tls_context,
    tls_demand,
    unforeseen,
    upgrade,
)
from router_trio.nats.websocket import WebSocketStream
from router_trio.protocol.framing import MAX_INFO, PING, PONG
from router_trio.settings import ConnectionSettings, ProxyURL

MAX_LINES_BEFORE_PONG = 64
"""Lines between CONNECT and its PONG. A server sends one INFO there, or two, and perhaps a PING."""

HANDSHAKE_SHARE = 0.9
"""Part of `connect_timeout` after which a handshake fails with an error that shows how far it got."""

_HANGS = "it hangs, or is no WebSocket listener"

T = TypeVar("T")


class Handshake:
    """The handshake on a connected stream. Call `shake_hands` once."""

    def __init__(
        self,
        stream: trio.SocketStream,
        server: str,
        settings: ConnectionSettings,
        name: str,
        files: trio.CapacityLimiter | None = None,
    ) -> None:
        """`files` limits the threads that read files, across all handshakes of a connection."""
        self._files = files or trio.CapacityLimiter(1)
        self._server = server
        self._settings = settings
        self._name = name
        # The text of a server has no query, which may be a secret: the configured one has it.
        self._url = next((url for url in settings.servers if str(url) == server), None) or address(server)
        self.secrets: Secrets = secrets_of(settings, self._url)
        """Secrets that are removed from every text of a peer."""
        self._demand = tls_demand(server, settings)
        """The setting that requires TLS, or None."""
        self.stream: trio.SocketStream | SecureStream | WebSocketStream = stream
        self.secured: bool = False
        """True if TLS is on."""
        self._in_tunnel = False
        self.info: ServerInfo = ServerInfo()
        """The server's INFO, as far as it can be trusted."""
        self._buffer = bytearray()
        self._searched = 0
        self._plain = stream

    @property
    def rest(self) -> bytes:
        """Bytes that were read beyond the handshake."""
        return bytes(self._buffer)

    async def shake_hands(self) -> None:
        """Log in. Can be cancelled at any point.

        Raises `LinkError`, `AuthorizationError` or `CertificateError`.
        """
        credentials = await self._login()
        self.secrets.add(*credentials.secrets)
        # If nothing but the server requires TLS, the context is created later: reading the system's authorities takes
        # some 20 ms, too long for each of many connections that reconnect at the same time.
        context = None if self._demand is None else await self._tls_context()
        try:
            with trio.fail_after(HANDSHAKE_SHARE * self._settings.connect_timeout):
                if self._settings.proxy is not None:
                    await self._open_tunnel(self._settings.proxy)
                if self._url.websocket:
                    await self._open_websocket(context)
                elif self._settings.tls_handshake_first:
                    await self._upgrade(context or await self._tls_context())
                if self._vet_greeting(await self._read_line()) and not self.secured:
                    await self._upgrade(context or await self._tls_context())
                answer = credentials.answer_to(self.info.nonce)
                self.secrets.add(*(answer[name] for name in answer.keys() & SECRET_FIELDS))
                await self.send(self._connect(answer) + PING)
                await self._read_pong()
        except trio.TooSlowError:
            raise self._in_words(LinkError(self._too_slow(), reason=reasons.TIMEOUT)) from None
        except LinkError as error:
            raise self._in_words(error) from error.__cause__
        except OSError:
            raise
        except Exception as error:
            raise unforeseen(error) from error

    async def send(self, data: bytes) -> None:
        """Send bytes. Raises `LinkError` if they would leave in clear text although TLS is required."""
        # This decides what leaves in clear text, whatever was read before.
        if self._demand is not None and not self.secured:
            raise self._no_tls(self._demand)
        # A server that has closed the connection may have sent the reason before, which is still to be read.
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    # --- internals ---

    async def _login(self) -> Login:
        settings = self._settings
        if settings.credentials_file is None and settings.nkey_seed_file is None:
            return login(settings)
        return await self._read_files(login, "credentials_file or nkey_seed_file")

    async def _tls_context(self) -> ssl.SSLContext:
        return await self._read_files(tls_context, "tls_ca_file, tls_cert_file or tls_key_file")

    async def _read_files(self, read: Callable[[ConnectionSettings], T], keys: str) -> T:
        """Read files in a thread. It is abandoned if their file system hangs: at most one for each connection."""
        limit = self._settings.connect_timeout / 2
        with trio.move_on_after(limit):
            return await trio.to_thread.run_sync(read, self._settings, abandon_on_cancel=True, limiter=self._files)
        raise LinkError(f"{keys} can't be read within {limit:g} s: does the file system hang?", reason=reasons.TIMEOUT)

    def _connect(self, credentials: dict[str, str]) -> bytes:
        options = {
            "verbose": False,
            "pedantic": False,
            "lang": "python3",
            "protocol": 1,
            "headers": self.info.headers,
            "no_responders": self.info.headers,
            "echo": True,
            "name": self._name,
            **credentials,
        }
        return b"CONNECT %b\r\n" % json.dumps(options).encode()

    async def _open_tunnel(self, proxy: ProxyURL) -> None:
        # Imported here, as is `upgrade`: most routers never parse HTTP to connect.
        from router_trio.nats.http_proxy import open_tunnel

        self._buffer += await open_tunnel(self._plain, proxy, self._url)
        self._in_tunnel = True
        if self._buffer and (self._url.websocket or self._settings.tls_handshake_first):
            raise ProtocolError(f"more than an answer came from the proxy, before anything was sent: {self._quote()}")

    async def _open_websocket(self, context: ssl.SSLContext | None) -> None:
        from router_trio.nats.upgrade import open_websocket

        stream: trio.SocketStream | SecureStream = self._plain
        if self._url.tls:
            stream = await self._secure(context or await self._tls_context())
        elif self._demand is not None:
            raise self._no_tls(self._demand)
        self.stream = await open_websocket(stream, self._url, self._settings.websocket_headers)

    async def _upgrade(self, context: ssl.SSLContext) -> None:
        if self._buffer:
            self._refuse_to_upgrade()
        await self._secure(context)
        self.info = self.info.without_announcements()

    async def _secure(self, context: ssl.SSLContext) -> SecureStream:
        hostname = self._settings.tls_hostname or self._url.host
        cure = WEBSOCKET_CURE if self._url.websocket else CURE
        self.stream = stream = await upgrade(self._plain, context, hostname, cure)
        self.secured = True
        return stream

    def _vet_greeting(self, line: bytes) -> bool:
        """Read the INFO. Return True if TLS has to follow."""
        if line.startswith(b"-ERR"):
            raise _refused(line[4:], logging_in=False)
        if not line.startswith(b"INFO "):
            raise ProtocolError(f"this is not a NATS server: it sent {quote(line)}; check `servers`")
        self.info = info = parse_info(line[5:])
        if self._url.websocket:
            return False  # the URL decides about TLS, whatever the server or a gateway in front of it reports
        offered = info.tls_required or info.tls_available
        if self._demand is not None and not self.secured and not offered:
            raise self._no_tls(self._demand)
        return info.tls_required or (self._demand is not None and offered)

    async def _read_pong(self) -> None:
        for _ in range(MAX_LINES_BEFORE_PONG):
            line = await self._read_line()
            word = line[:5].upper()
            if word == b"PONG":
                return
            if word == b"INFO ":
                self.info = parse_info(line[5:], self.info)
            elif word == b"-ERR ":
                raise _refused(line[5:], logging_in=True)
            elif word == b"PING":
                await self.send(PONG)
            elif word != b"+OK":
                raise ProtocolError(f"the server answered CONNECT with {quote(line)}")
        raise ProtocolError(f"the server sent {MAX_LINES_BEFORE_PONG} lines and did not answer CONNECT")

    def _too_slow(self) -> str:
        if self._settings.proxy is not None and not self._in_tunnel:
            return (
                f"the proxy {self._settings.proxy} did not answer the request for a tunnel in time; check that it runs"
            )
        if self._url.websocket and not isinstance(self.stream, WebSocketStream):
            what = "TLS handshake" if self._url.tls and not self.secured else "WebSocket request"
            return f"{self._url} accepted the connection and did not finish the {what} in time; {_HANGS}"
        if self.info == ServerInfo() and not self._buffer and not self._settings.tls_handshake_first:
            if self._url.websocket:
                return f"{self._url} opened a WebSocket and sent no INFO; {_HANGS}"
            return (
                f"{address(self._server).address} accepted the connection and sent nothing, where a NATS server sends "
                "INFO at once; it hangs, or this is not its client port (by default 4222; ports for monitoring and "
                "for ws:// wait for HTTP)"
            )
        return "the server did not finish the handshake in time"

    def _in_words(self, error: LinkError) -> LinkError:
        """Return the error; it names the proxy if nothing from a NATS server has arrived through its tunnel."""
        if not self._in_tunnel or self.info != ServerInfo() or isinstance(error, UnexpectedError):
            return error
        if isinstance(error, CertificateError):
            cure = "if it inspects TLS, set tls_ca_file to its authority, or have it pass this host on"
        else:
            cure = "it may answer by itself: check that it allows CONNECT to this host and port"
        found = type(error)(f"{error}. This was through the proxy {self._settings.proxy}: {cure}", reason=error.reason)
        found.__cause__ = error.__cause__
        return found

    def _no_tls(self, demand: str) -> LinkError:
        return LinkError(
            f"{self._server} does not offer TLS, which the configuration asks for ({demand}); nothing was sent to it. "
            "Switch TLS on at the server; or, to talk to it in clear, write nats:// and leave out every tls_ setting",
            reason=reasons.TLS,
        )

    def _refuse_to_upgrade(self) -> NoReturn:
        """Raise for bytes behind INFO in clear text. The only ones that a server sends are an -ERR when it is full."""
        if self._buffer.startswith(b"-ERR "):
            raise _refused(bytes(self._buffer[5:].partition(b"\n")[0]), logging_in=False)
        raise ProtocolError(
            f"more than an INFO came in clear before the upgrade to TLS: {self._quote()}; somebody "
            "between here and the server may have put it there"
        )

    def _quote(self) -> str:
        return quote(bytes(self._buffer))

    async def _read_line(self) -> bytes:
        """Return the next line, without its line end."""
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return line.rstrip(b"\r")
            self._searched = len(self._buffer)
            if self._searched > MAX_INFO:
                raise ProtocolError("this is not a NATS server: it sent an endless line")
            try:
                data = await self.stream.receive_some(MAX_INFO)
            except trio.BrokenResourceError as error:
                raise certificate_required(error) or LinkError(
                    "the connection broke in the handshake", reason=reasons.CLOSED
                ) from error
            if not data:
                close = self.stream.close if isinstance(self.stream, WebSocketStream) else None
                why = "" if close is None else f": {close}"
                raise LinkError(f"the server closed the connection in the handshake{why}", reason=reasons.CLOSED)
            self._buffer += data


def _refused(words: bytes, *, logging_in: bool) -> LinkError:
    """Return the error for an -ERR. If it arrives before we have tried to log in, it is not about our credentials."""
    text = quote(words.strip().strip(b"'"))
    known = text.lower()
    if "timeout" in known:
        return LinkError("the server did not finish the handshake in time", reason=reasons.TIMEOUT)
    if logging_in and ("auth" in known or "credential" in known):
        return AuthorizationError(
            f"the server refused the credentials: {text}; check user and password, token, nkey_seed_file or "
            "credentials_file of this connection"
        )
    if "maximum connections" in known:
        return LinkError(f"the server is full: {text}", reason=reasons.MAX_CONNECTIONS)
    return LinkError(f"the handshake failed: {text or 'the server says only -ERR'}", reason=reasons.HANDSHAKE)
