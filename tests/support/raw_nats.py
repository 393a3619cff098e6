"""A small NATS client for tests, with a parser of its own: it shares no code with the package and none with nats-py.

It does not reconnect. When the connection ends, waiting calls raise `RawNatsClosed`. Errors that the server reports by
-ERR are in `errors`. Cancelling a call that sends may leave half a frame behind: then drop the client. JetStream is in
`tests.support.raw_jetstream`.
"""

from __future__ import annotations

import base64
import json
import math
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count, islice
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import trio

from tests.support.proxy import background

HeaderPairs = tuple[tuple[str, str], ...]
Headers = Mapping[str, str] | Sequence[tuple[str, str]] | bytes
"""Headers to publish: a mapping, pairs if a name is to appear twice, or the raw block if it is to be invalid."""
Signer = Callable[[bytes], bytes]
T = TypeVar("T")
WINDOW = 1_000
"""Messages in one write, and requests under way at a time."""


class RawNatsError(Exception):
    """The base class of the errors here; raised itself if the server refused the connection."""


class RawNatsClosed(RawNatsError):
    """The connection has ended."""


class NoResponders(RawNatsError):
    """The subject of a request has no subscribers."""


class RawMessage(NamedTuple):
    """A message as received. `header_block` is the block before it was parsed."""

    subject: str
    reply: str | None
    header_block: bytes
    payload: bytes

    @property
    def headers(self) -> HeaderPairs:
        """Names and values in order, repeated names repeated."""
        return parse_headers(self.header_block)

    @property
    def status(self) -> str:
        """The status of a control message (`100`, `404`, `503` ...), or nothing."""
        return self.header_block.partition(b"\r\n")[0].removeprefix(b"NATS/1.0").strip()[:3].decode()


class RawSubscription:
    """Messages of one subscription, kept without bound until they are read."""

    def __init__(self, client: RawClient, sid: int) -> None:
        self.sid = sid
        self._client = client
        self._sender, self._receiver = trio.open_memory_channel[RawMessage](math.inf)

    async def next(self, within: float = 5.0) -> RawMessage:
        """Return the next message. Raises `trio.TooSlowError` after `within` seconds, `RawNatsClosed` at the end."""
        with trio.fail_after(within):
            try:
                return await self._receiver.receive()
            except trio.EndOfChannel:
                raise self._client.ended() from None

    def waiting(self) -> list[RawMessage]:
        """The received messages that were not read yet. After a `ping` these include all that was sent before."""
        return [self._receiver.receive_nowait() for _ in range(self._receiver.statistics().current_buffer_used)]

    async def unsubscribe(self) -> None:
        """Receive no more; return when the server has confirmed it. Received messages can still be read."""
        await self._client.send(b"UNSUB %d\r\n" % self.sid)
        await self._client.ping()
        self._client._subscriptions.pop(self.sid, None)
        self.end()

    def deliver(self, message: RawMessage) -> None:
        """Add a message; called by the client's reader."""
        self._sender.send_nowait(message)

    def end(self) -> None:
        """End the subscription; called by the client's reader."""
        self._sender.close()

    def __aiter__(self) -> AsyncIterator[RawMessage]:
        return self._receiver.__aiter__()


class RawClient:
    """A connection, opened by `connect`."""

    def __init__(self, url: str, stream: trio.abc.Stream) -> None:
        self.url = url
        self.info: dict[str, Any] = {}
        """The server's latest INFO; it contains `ldm` when the server is in lame duck mode."""
        self.errors: list[str] = []
        self._stream = stream
        self._buffer = bytearray()
        self._sending = trio.Lock()
        self._pongs: deque[trio.Event] = deque()
        self._closed = trio.Event()
        self._numbers = count(1)
        self._subscriptions: dict[int, RawSubscription] = {}
        self._inbox = self.new_inbox()
        self._answers: dict[str, RawSubscription] = {}

    async def send(self, frames: bytes) -> None:
        """Write bytes as they are. Raises `RawNatsClosed` if the connection has ended."""
        if self._closed.is_set():
            raise self.ended()
        try:
            async with self._sending:
                await self._stream.send_all(frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self.ended() from None

    async def publish(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None, reply: str | None = None
    ) -> None:
        """Write a message; call `ping` to be sure that the server has it."""
        await self.send(encode_publish(subject, payload, headers, reply))

    async def publish_many(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Write many messages in few calls."""
        for window in windows(messages):
            await self.send(b"".join(encode_publish(subject, payload) for subject, payload in window))

    async def subscribe(self, subject: str, queue: str | None = None) -> RawSubscription:
        """Subscribe; return when the server has the subscription."""
        subscription = RawSubscription(self, next(self._numbers))
        self._subscriptions[subscription.sid] = subscription
        await self.send(f"SUB {subject} {queue or ''} {subscription.sid}\r\n".encode())
        await self.ping()
        return subscription

    async def ping(self, within: float = 5.0) -> None:
        """Send a fence: return when the server has processed all that was sent, and all that it sent before has
        arrived.
        """
        answered = trio.Event()
        with trio.fail_after(within):
            # The lock is fair, so the order of the pongs is the order of the pings.
            self._pongs.append(answered)
            try:
                await self.send(b"PING\r\n")
            except trio.Cancelled:
                self._pongs.remove(answered)  # it was not sent, and the next pong answers another ping
                raise
            await answered.wait()
        if self._closed.is_set():
            raise self.ended()

    async def request(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None, within: float = 5.0
    ) -> RawMessage:
        """Send a request and wait for one answer. Raises `NoResponders`, `trio.TooSlowError`, `RawNatsClosed`."""
        (answer,) = await self.request_many([(subject, payload, headers)], within)
        if answer.status == "503":
            raise NoResponders(f"nobody answers on {subject}")
        return answer

    async def request_many(
        self, requests: Sequence[tuple[str, bytes, Headers | None]], within: float = 5.0
    ) -> list[RawMessage]:
        """Send requests at once; return one answer each, in the order of the requests, whatever their content."""
        answers: dict[int, RawMessage] = {}
        with self._replies() as (inbox, subscription), trio.fail_after(within):
            frames = (encode_publish(*request, f"{inbox}.{place}") for place, request in enumerate(requests))
            await self.send(b"".join(frames))
            while len(answers) < len(requests):
                for answer in (await subscription.next(math.inf), *subscription.waiting()):
                    answers[int(answer.subject.rpartition(".")[2])] = answer
        return [answers[place] for place in range(len(requests))]

    def new_inbox(self) -> str:
        """Return a new unique subject, to subscribe to."""
        return f"_INBOX.{os.urandom(8).hex()}"

    @contextmanager
    def _replies(self) -> Iterator[tuple[str, RawSubscription]]:
        """Yield a subject for replies, to use with one more token, and the subscription to them."""
        number = str(next(self._numbers))
        self._answers[number] = subscription = RawSubscription(self, 0)
        try:
            yield f"{self._inbox}.{number}", subscription
        finally:
            del self._answers[number]

    async def closed(self) -> None:
        """Wait until the connection has ended."""
        await self._closed.wait()

    def ended(self) -> RawNatsClosed:
        """Return the error for further calls on a connection that has ended."""
        return RawNatsClosed(f"the connection to {self.url} has ended; the server's errors: {self.errors}")

    async def handshake(self, options: dict[str, Any], sign: Signer | None, tls: ssl.SSLContext | None) -> None:
        """Do the handshake from INFO to the first PONG, for `connect`. Raises `RawNatsError` if the server refuses."""
        while not self.info:
            await self._read_some()
        if tls is not None and isinstance(self._stream, trio.SocketStream):
            host = urlsplit(self.url).hostname
            self._stream = secured = trio.SSLStream(self._stream, tls, server_hostname=host)
            await secured.do_handshake()
        if sign is not None:
            signature = base64.urlsafe_b64encode(sign(self.info["nonce"].encode()))
            options["sig"] = signature.decode().rstrip("=")
        greeted = trio.Event()
        self._pongs.append(greeted)
        await self.send(f"CONNECT {json.dumps(options)}\r\nSUB {self._inbox}.> 0\r\nPING\r\n".encode())
        while not greeted.is_set():
            try:
                await self._read_some()
            except RawNatsClosed:
                raise RawNatsError(f"{self.url} refused the connection: {self.errors}") from None

    async def read_all(self) -> None:
        """Read until the connection ends, for `connect`."""
        try:
            while True:
                await self._read_some()
        except RawNatsClosed:
            pass
        finally:
            self._closed.set()
            for pong in self._pongs:
                pong.set()
            for subscription in (*self._subscriptions.values(), *self._answers.values()):
                subscription.end()

    async def _read_some(self) -> None:
        try:
            data = await self._stream.receive_some(1 << 18)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            raise self.ended()
        self._buffer += data
        if self._parse():
            await self.send(b"PONG\r\n")

    def _parse(self) -> bool:
        """Process complete frames. Return True if there was a PING among them."""
        buffer, start, pinged = self._buffer, 0, False
        while (end := buffer.find(b"\r\n", start)) >= 0:
            verb, *words = buffer[start:end].decode("utf-8", "surrogateescape").split(" ")
            start_of_body = end + 2
            if verb in ("MSG", "HMSG"):
                size = int(words[-1])
                if len(buffer) < start_of_body + size + 2:
                    break
                split = start_of_body + (int(words[-2]) if verb == "HMSG" else 0)
                reply = words[2] if len(words) == (4 if verb == "MSG" else 5) else None
                block, payload = buffer[start_of_body:split], buffer[split : start_of_body + size]
                self._deliver(int(words[1]), RawMessage(words[0], reply, bytes(block), bytes(payload)))
                start = start_of_body + size + 2
                continue
            if verb == "PONG":
                self._pongs.popleft().set()
            elif verb == "INFO":
                self.info = json.loads(buffer[start + 5 : end])
            elif verb == "-ERR":
                self.errors.append(" ".join(words).strip("'"))
            pinged |= verb == "PING"
            start = start_of_body
        del buffer[:start]
        return pinged

    def _deliver(self, sid: int, message: RawMessage) -> None:
        target = self._subscriptions.get(sid) if sid else self._answers.get(message.subject.split(".", 3)[2])
        if target is not None:
            target.deliver(message)


@asynccontextmanager
async def connect(
    url: str,
    *,
    tls: ssl.SSLContext | None = None,
    handshake_first: bool = False,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    nkey: str | None = None,
    jwt: str | None = None,
    sign: Signer | None = None,
) -> AsyncIterator[RawClient]:
    """Connect, and close at the end. `nkey` is a public key; it and `jwt` need `sign`, for the server's nonce.

    Raises `RawNatsError` if the server refuses, `OSError` if there is none, `trio.BrokenResourceError` if TLS fails.
    """
    target = urlsplit(url)
    options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "raw"}
    if target.username is not None:
        user, password = unquote(target.username), unquote(target.password or "")
    given = {"user": user, "pass": password, "auth_token": token, "nkey": nkey, "jwt": jwt}
    options |= {"version": "0", "protocol": 1} | {key: value for key, value in given.items() if value is not None}
    stream: trio.abc.Stream = await trio.open_tcp_stream(target.hostname or "127.0.0.1", target.port or 4222)
    if handshake_first:
        stream = trio.SSLStream(stream, tls or ssl.create_default_context(), server_hostname=target.hostname)
    client = RawClient(url, stream)
    try:
        with trio.fail_after(10):
            await client.handshake(options, sign, tls)
        async with background() as nursery:
            nursery.start_soon(client.read_all)
            yield client
    finally:
        await trio.aclose_forcefully(stream)


def encode_publish(
    subject: str, payload: bytes = b"", headers: Headers | None = None, reply: str | None = None
) -> bytes:
    """Return a PUB or HPUB frame."""
    where = f"{subject} {reply}" if reply else subject
    if headers is None:
        return b"PUB %b %d\r\n%b\r\n" % (where.encode(), len(payload), payload)
    if isinstance(headers, bytes):
        block = headers
    else:
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in pairs)
        block = f"NATS/1.0\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
    sizes = b"%d %d" % (len(block), len(block) + len(payload))
    return b"HPUB %b %b\r\n%b%b\r\n" % (where.encode(), sizes, block, payload)


def parse_headers(block: bytes) -> HeaderPairs:
    """Return the names and values of a header block, in order; the status line is left out."""
    lines = block.decode("utf-8", "surrogateescape").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return tuple((name, value.strip()) for name, _, value in pairs)


def windows(messages: Iterable[T]) -> Iterator[list[T]]:
    """Yield lists of up to `WINDOW` of them."""
    iterator = iter(messages)
    while window := list(islice(iterator, WINDOW)):
        yield window
