"""An HTTP proxy for tests: tunnels by CONNECT, with a login or without."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.support.impostors import GONE, Caller, Impostor, impostor

TUNNEL = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def hear_request(caller: Caller) -> bytes:
    """Return the request of a caller, up to the end of its headers."""
    await caller.hear(b"\r\n\r\n")
    return bytes(caller.clear)


async def tunnel(caller: Caller, target: tuple[str, int], answer: bytes = TUNNEL) -> None:
    """Answer, and relay between the caller and the target until one of them closes."""
    async with await trio.open_tcp_stream(*target) as behind:
        await caller.say(answer)

        async def relay(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
            try:
                while data := await source.receive_some(65_536):
                    await sink.send_all(bytes(data))
            except GONE:
                pass
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, caller.stream, behind)
            nursery.start_soon(relay, behind, caller.stream)
    await caller.close()


@asynccontextmanager
async def http_proxy(*, login: str = "", names: dict[str, str] | None = None) -> AsyncIterator[Impostor]:
    """Run a proxy; `login` is the `user:password` that it requires, `names` are hosts that it resolves by itself.

    The requests are in `clear` of its callers.
    """

    async def play(caller: Caller) -> None:
        head = (await hear_request(caller)).decode("latin-1")
        method, target, _ = head.split(" ", 2)
        assert method == "CONNECT", head
        expected = base64.b64encode(login.encode()).decode()
        if login and f"Proxy-Authorization: Basic {expected}\r\n" not in head:
            await caller.say(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n")
            await caller.close()
            return
        host, _, port = target.rpartition(":")
        try:
            await tunnel(caller, ((names or {}).get(host, host).strip("[]"), int(port)))
        except OSError:
            await caller.say(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            await caller.close()

    async with impostor(play) as running:
        running.url = f"http://{f'{login}@' if login else ''}{running.address}"
        yield running
