"""TCP and TLS streams to a server: opened by Trio, and read and written with as few scheduler turns as possible.

Resolving and connecting can be cancelled at once. Errors of the operating system and of TLS are translated here, and
nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator

import trio

from router_trio.errors import CertificateError, LinkError, UnexpectedError, reasons
from router_trio.forked import close_in_children
from router_trio.settings import ConnectionSettings, ProxyURL, ServerURL
from router_trio.settings.checks.files import load_certificate

_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.ENOSPC})
"""Errors of a system that has run out of descriptors, memory or threads: the next attempt may succeed."""


def address(server: str) -> ServerURL:
    """Parse a server URL or a bare `host:port`. Raises `LinkError`: reason `dns`."""
    try:
        return ServerURL.parse(server)
    except ValueError as error:
        raise LinkError(f"not a valid server address: {error}", reason=reasons.DNS) from None


def tls_demand(server: str, settings: ConnectionSettings) -> str | None:
    """Return the setting that requires TLS with this server, regardless of its INFO; None if the server decides."""
    url = address(server)
    return settings.tls_demanded_by or (f"{url.scheme}:// in its address" if url.tls else None)


async def open_stream(server: str, proxy: ProxyURL | None = None) -> trio.SocketStream:
    """Connect by TCP, to the proxy if there is one. Raises `LinkError`: reason `dns` or `network`.

    Can be cancelled at any point.
    """
    url = proxy or address(server)
    host, port, key = url.host, url.port, "servers" if proxy is None else "proxy"
    name = "server" if proxy is None else "proxy"
    try:
        stream = await trio.open_tcp_stream(host, port)
    except (socket.gaierror, UnicodeError) as error:
        # UnicodeError: a name that can't be passed to a resolver, for instance with an empty or a too long label.
        detail = getattr(error, "strerror", None) or error
        raise LinkError(
            f"the name {host!r} can't be resolved: {detail}; check `{key}` and the resolver", reason=reasons.DNS
        ) from error
    except OSError as error:
        if (lacking := out_of_resources(error)) is not None:
            raise lacking from error
        if any(isinstance(one, ConnectionRefusedError) for one in _leaves(error)):
            raise LinkError(f"connection refused by {url.address}; is the {name} running?") from error
        detail = error.strerror or str(error)
        raise LinkError(f"can't connect to {url.address}: {detail}; is the {name} running there?") from error
    close_in_children(stream.socket)
    return stream


def out_of_resources(error: BaseException) -> LinkError | None:
    """Return the error to raise if an attempt failed for lack of a descriptor, memory or a thread; else None."""
    # Trio puts the errors of several addresses into a group, as the cause.
    for one in _leaves(error):
        scarce = isinstance(one, OSError) and not isinstance(one, ssl.SSLError) and one.errno in _SCARCE
        if scarce or isinstance(one, MemoryError) or (isinstance(one, RuntimeError) and "new thread" in str(one)):
            detail = (one.strerror if isinstance(one, OSError) else None) or str(one) or type(one).__name__
            return LinkError(
                f"the system lacks resources for one more connection: {detail}; raise its limits (ulimit -n, "
                "LimitNOFILE, TasksMax)",
                reason=reasons.RESOURCES,
            )
    return None


def unforeseen(error: Exception) -> LinkError:
    """Return the error that ends a link after something received on it raised an unexpected exception.

    Running out of memory is not a bug: its reason is `resources`.
    """
    if isinstance(error, MemoryError) or (isinstance(error, ExceptionGroup) and error.subgroup(MemoryError)):
        return LinkError(
            "the process has no memory left for what came over the link; raise its limit (MemoryMax of systemd, the "
            "memory limit of its container), or lower max_pending_bytes and max_in_flight_bytes",
            reason=reasons.RESOURCES,
        )
    return UnexpectedError(error)


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _leaves(one)
        yield error
        error = error.__cause__


def failed_attempt(server: str, error: BaseException) -> BaseException:
    """Return the `LinkError` for an error of the system or of a library during an attempt to connect; others as is."""
    if isinstance(error, LinkError):
        return error
    lacking = out_of_resources(error)
    if lacking is None and isinstance(error, OSError):
        lacking = LinkError(f"can't connect to {address(server).address}: {error.strerror or error}")
    if lacking is None:
        return error
    lacking.__cause__ = error
    return lacking


def tls_context(settings: ConnectionSettings) -> ssl.SSLContext:
    """Return the client's TLS context: always verifying, with the configured authority and certificate.

    Raises `CertificateError` if a file can't be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        load_certificate(context, settings)
    except OSError as error:
        if (lacking := out_of_resources(error)) is not None:
            raise lacking from error
        raise CertificateError(
            f"tls_ca_file, tls_cert_file or tls_key_file can't be used: {error}; each must be a PEM file, and the key "
            "that of the certificate"
        ) from error
    return context


CURE = "check that the server has TLS on this port; set tls_handshake_first if it has handshake_first, and only then"
WEBSOCKET_CURE = "check that the server has TLS on this port; to talk to it in clear, write ws://"

SecureStream = trio.SSLStream[trio.SocketStream]


async def upgrade(stream: trio.SocketStream, context: ssl.SSLContext, hostname: str, cure: str = CURE) -> SecureStream:
    """Do the TLS handshake on a connected stream. `cure` is what to check if the peer does not take part in it.

    Raises `CertificateError` or `LinkError`; blocks on the peer.
    """
    # NATS servers end TLS connections by closing the socket, so no close_notify is awaited or sent.
    secured = trio.SSLStream(stream, context, server_hostname=hostname, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise CertificateError(
                f"the certificate of {hostname} is not trusted: {cause.verify_message}; set tls_ca_file to the "
                "authority that signed it, or tls_hostname to the name it is for"
            ) from error
        if isinstance(cause, ssl.SSLError):
            alert = cause.reason or cause
            raise certificate_required(error) or LinkError(
                f"the TLS handshake with {hostname} failed: {alert}; {cure}", reason=reasons.TLS
            ) from error
        raise LinkError(f"{hostname} closed the connection in the TLS handshake; {cure}", reason=reasons.TLS) from error
    return secured


def certificate_required(error: trio.BrokenResourceError) -> CertificateError | None:
    """Return the error if the stream broke because the server requires a client certificate, or another one.

    With TLS 1.3 this is noticed only after the handshake.
    """
    cause = error.__cause__
    alert = str(cause.reason or "") if isinstance(cause, ssl.SSLError) else ""
    if "ALERT" not in alert or not ("CERTIFICATE" in alert or "UNKNOWN_CA" in alert):
        return None
    return CertificateError(
        f"the server requires another client certificate: {alert}; set tls_cert_file and tls_key_file to one that its "
        "authority signed"
    )


async def abandon(stream: trio.abc.AsyncResource) -> None:
    """Close without waiting for the peer, also when cancelled."""
    with contextlib.suppress(Exception), trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)


# --- the stream of a wire ---
#
# Trio tries to read before it waits, and yields after each write that did not block. For a lone message that is one
# system call and one turn too many. Here a read waits first, and a task writes in its own turn. Streams with TLS are
# read and written as Trio does it.

BeforeWrite = Callable[[], None]
"""Called each time before bytes leave. Must not raise."""


class TCPStream:
    """A connected stream that is read and written directly. Trio's stream still owns the socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self.send_all: Callable[[bytes], Awaitable[None]] = stream.send_all

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return received bytes, `b""` at the end. Blocks until there are some; always lets other tasks run first.

        Raises `trio.BrokenResourceError`, or `trio.ClosedResourceError` if the stream has been closed here.
        """
        while True:
            number = self._socket.fileno()
            if number < 0:
                raise trio.ClosedResourceError("the stream is closed")
            await trio.lowlevel.wait_readable(number)
            try:
                return os.read(number, max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    def write_some(self, data: bytes) -> int:
        """Write what the socket accepts now, and return the number of bytes. Raises `trio.BrokenResourceError`."""
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error


class NotedTCPStream(TCPStream):
    """A `TCPStream` that calls `before_write` each time before bytes leave."""

    def __init__(self, stream: trio.SocketStream, before_write: BeforeWrite) -> None:
        super().__init__(stream)
        self._before_write = before_write
        self.send_all: Callable[[bytes], Awaitable[None]] = NotedStream(stream, before_write).send_all

    def write_some(self, data: bytes) -> int:
        """Call `before_write`, then write what the socket accepts now."""
        self._before_write()
        return super().write_some(data)


class NotedStream:
    """Any stream, such as one with TLS, that calls `before_write` each time before bytes leave."""

    def __init__(self, stream: trio.abc.Stream, before_write: BeforeWrite) -> None:
        self._stream = stream
        self._before_write = before_write
        self.receive_some: Callable[[int], Awaitable[bytes | bytearray]] = stream.receive_some

    async def send_all(self, data: bytes) -> None:
        """Call `before_write`, then send as the stream does."""
        self._before_write()
        await self._stream.send_all(data)


def stream_for_wire(
    stream: trio.abc.Stream, before_write: BeforeWrite | None
) -> trio.abc.Stream | TCPStream | NotedStream:
    """Return the object by which a wire reads and writes this stream."""
    if isinstance(stream, trio.SocketStream):
        return TCPStream(stream) if before_write is None else NotedTCPStream(stream, before_write)
    return stream if before_write is None else NotedStream(stream, before_write)
