"""Answers to an HTTP request, drawn from a seed: each is one, or ends the attempt with an error of a link."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import memory_stream_pair

from router_trio.errors import LinkError, UnexpectedError
from router_trio.nats.http_request import MAX_ANSWER, Answer, request

PARTS = (
    *(
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200",
        b"HTTP/1.1 101 Switching Protocols",
        b"HTTP/1.1 103 Early",
        b"HTTP/1.1 407 P",
    ),
    *(b"HTTP/9.9 200 OK", b"HTTP/1.1 2OO OK", b"HTTP/1.1  200", b"HTTP/", b"http/1.1 200 OK", b"ICY 200 OK"),
    *(b"\r\n", b"\r\n", b"\r\n\r\n", b"\r\n\r\n", b"\n", b"\n\n", b"\r", b" ", b"\x00", b"\xff", b": ", b":"),
    *(b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 9" + b"9" * 400, b"Transfer-Encoding: chunked"),
    *(b"Transfer-Encoding: x", b"Upgrade: websocket", b"Connection: Upgrade, close", b"Set-Cookie: a=b", b"X: y"),
    *(b"X" * 5_000, b"INFO {}", b"<html>"),
)


async def answered(data: bytes, pieces: int) -> Answer | LinkError:
    """Return the answer that these bytes are, or the error."""
    ours, theirs = memory_stream_pair()

    async def play() -> None:
        size = len(data) // pieces + 1
        for at in range(0, len(data), size):
            await theirs.send_all(data[at : at + size])
        await theirs.send_eof()

    stream: trio.SocketStream = ours  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play)
        found: Answer | LinkError
        try:
            found = await request(stream, b"GET", b"/", [(b"Host", b"h"), (b"Upgrade", b"websocket")], of="the server")
        except LinkError as error:
            found = error
        nursery.cancel_scope.cancel()
    return found


async def test_any_answer_is_read_or_refused() -> None:
    read = 0
    for seed in range(300):
        dice = Random(seed)
        start = [dice.choice(PARTS[:5])] if dice.random() < 0.7 else []
        data = b"".join([*start, *dice.choices(PARTS, k=dice.randint(0, 12))])
        found = await answered(data, dice.randint(1, 4))
        assert not isinstance(found, UnexpectedError), f"seed {seed}: {found}"
        if isinstance(found, LinkError):
            assert len(str(found)) < 300, f"seed {seed}"
            assert str(found).isprintable(), f"seed {seed}"
        else:
            read += 1
            assert str(found).isprintable()
    assert read > 30


@pytest.mark.parametrize("filler", [b"X: y\r\n", b"HTTP/1.1 103 Hints\r\n\r\n"])
async def test_the_size_of_an_answer_is_limited(filler: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\n" if filler.startswith(b"X") else b""
    small = await answered(
        head + filler * (MAX_ANSWER // len(filler) // 2) + (b"\r\n" if head else b"HTTP/1.1 200 O\r\n\r\n"), 7
    )
    assert isinstance(small, Answer)
    large = await answered(head + filler * (3 * MAX_ANSWER // len(filler)), 7)
    assert f"more than {MAX_ANSWER} bytes" in str(large)
