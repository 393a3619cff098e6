"""A NATS server for tests with scripted answers: real sockets, and answers of any kind to any publish.

It knows CONNECT, PING, SUB, UNSUB, PUB and HPUB, keeps subscriptions, and calls the test's function for the answers to
each publish. With a parser of its own: it shares no code with the package.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import trio

from router_trio.embedded import HOST
from tests.support.proxy import background

CREATED = "2026-01-02T03:04:05.678901234Z"


class Published(NamedTuple):
    """A publish of a client."""

    subject: str
    reply: str
    payload: bytes


class Sent(NamedTuple):
    """A message from the server to the subscribers of `to`; `subject` is the one in the message, by default `to`."""

    to: str
    payload: bytes = b""
    block: bytes = b""
    reply: str = ""
    subject: str = ""


Answer = Callable[[Published], Iterable[Sent]]


class RawServer:
    """A running server; see `raw_server`."""

    def __init__(self, answer: Answer, version: str) -> None:
        self.answer = answer
        self.version = version
        self.published: list[Published] = []
        self.connections = 0
        self._subscriptions: list[tuple[list[str], bytes, trio.SocketStream]] = []
        self._sending = trio.Lock()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        info = {"server_id": "x", "version": self.version, "proto": 1, "headers": True, "max_payload": 1048576}
        try:
            await self._say(stream, b"INFO %b\r\n" % json.dumps(info).encode())
            buffer = b""
            async for data in stream:
                buffer = await self._parse(buffer + data, stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._subscriptions = [one for one in self._subscriptions if one[2] is not stream]

    async def _parse(self, buffer: bytes, stream: trio.SocketStream) -> bytes:
        while (end := buffer.find(b"\r\n")) >= 0:
            verb, *words = buffer[:end].split(b" ")
            rest = buffer[end + 2 :]
            if verb in (b"PUB", b"HPUB"):
                size = int(words[-1])
                if len(rest) < size + 2:
                    break
                headers = int(words[-2]) if verb == b"HPUB" else 0
                reply = words[1] if len(words) == (3 if verb == b"PUB" else 4) else b""
                published = Published(words[0].decode(), reply.decode(), rest[headers:size])
                rest = rest[size + 2 :]
                self.published.append(published)
                for sent in self.answer(published):
                    await self.send(sent)
            elif verb == b"PING":
                await self._say(stream, b"PONG\r\n")
            elif verb == b"SUB":
                self._subscriptions.append((words[0].decode().split("."), words[-1], stream))
            elif verb == b"UNSUB":
                self._subscriptions = [one for one in self._subscriptions if one[1:] != (words[0], stream)]
            buffer = rest
        return buffer

    async def send(self, sent: Sent) -> None:
        """Send a message to all that subscribed to its subject."""
        tokens = sent.to.split(".")
        for pattern, sid, stream in list(self._subscriptions):
            if _matches(pattern, tokens):
                words = [(sent.subject or sent.to).encode(), sid, *([sent.reply.encode()] if sent.reply else [])]
                size = len(sent.block) + len(sent.payload)
                verb, sizes = (b"HMSG", [b"%d" % len(sent.block)]) if sent.block else (b"MSG", [])
                line = b" ".join([verb, *words, *sizes, b"%d" % size])
                await self._say(stream, b"%b\r\n%b%b\r\n" % (line, sent.block, sent.payload))

    async def _say(self, stream: trio.SocketStream, data: bytes) -> None:
        async with self._sending:
            await stream.send_all(data)


def _matches(pattern: list[str], tokens: list[str]) -> bool:
    for place, token in enumerate(pattern):
        if token == ">":
            return len(tokens) > place
        if place >= len(tokens) or token not in ("*", tokens[place]):
            return False
    return len(pattern) == len(tokens)


@asynccontextmanager
async def raw_server(answer: Answer, version: str = "2.15.0") -> AsyncIterator[tuple[RawServer, str]]:
    """Run a server of that version that answers each publish with `answer`; yield it and its URL."""
    server = RawServer(answer, version)
    async with background() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host=HOST))
        yield server, f"nats://{HOST}:{listener.socket.getsockname()[1]}"


# --- the answers of JetStream without any error ---


def stream_answer(stream: str) -> dict[str, Any]:
    """Return the answer to STREAM.INFO of an empty stream."""
    config = {"name": stream, "subjects": ["in.>"], "retention": "limits", "duplicate_window": 120_000_000_000}
    state = {"messages": 0, "bytes": 0, "first_seq": 1, "last_seq": 0, "consumer_count": 1}
    return {"config": config, "created": CREATED, "state": state}


def consumer_answer(stream: str, durable: str, **config: Any) -> dict[str, Any]:
    """Return the answer to CONSUMER.INFO and CONSUMER.CREATE of a consumer that has delivered nothing."""
    nothing = {"consumer_seq": 0, "stream_seq": 0}
    settings = {"durable_name": durable, "ack_policy": "explicit", "ack_wait": 30_000_000_000, "max_deliver": -1}
    return {
        "stream_name": stream,
        "name": durable,
        "created": CREATED,
        "config": settings | config,
        "delivered": dict(nothing),
        "ack_floor": dict(nothing),
        "num_ack_pending": 0,
        "num_redelivered": 0,
        "num_waiting": 0,
        "num_pending": 0,
    }


NO_CONSUMER = {"error": {"code": 404, "err_code": 10014, "description": "consumer not found"}}
