"""The limit: a Trio loop on a socket that routes and does nothing else. No ledger, no fences, no errors, no headers.

`raw_core.py URL [--handler]`: `in.TOKEN` -> `out.TOKEN`.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import trio

READ_SIZE = 256 * 1024
CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"protocol":1}\r\n'


async def shout(payload: bytes) -> bytes:
    """Do the work of the handler workload's handler."""
    return payload.upper()


async def route(url: str, with_handler: bool) -> None:
    """Route until the connection ends."""
    target = urlsplit(url)
    stream = await trio.open_tcp_stream(target.hostname or "127.0.0.1", target.port or 4222)
    await stream.send_all(CONNECT + b"SUB in.* 1\r\n")
    parts: list[bytes] = []
    needed = 0
    while data := await stream.receive_some(READ_SIZE):
        parts.append(data)
        needed -= len(data)
        if needed > 0:
            continue
        data = b"".join(parts) if len(parts) > 1 else data
        out: list[bytes] = []
        position, needed = _work_off(data, out) if not with_handler else await _work_off_handled(data, out)
        parts = [data[position:]] if position < len(data) else []
        if out:
            await stream.send_all(b"".join(out))


def _work_off(data: bytes, out: list[bytes]) -> tuple[int, int]:
    """Append a frame to send for each complete one; return where the rest begins and how much of it is missing."""
    position = 0
    while (line_end := data.find(b"\r\n", position)) >= 0:
        if data[position : position + 4] != b"MSG ":
            if data[position : position + 4] == b"PING":
                out.append(b"PONG\r\n")
            position = line_end + 2
            continue
        subject, _, size = data[position + 4 : line_end].split(b" ")
        end = line_end + 4 + int(size)
        if end > len(data):
            return position, end - len(data)
        out.append(b"PUB out." + subject[3:] + b" " + data[line_end - len(size) : end])
        position = end
    return position, 0


async def _work_off_handled(data: bytes, out: list[bytes]) -> tuple[int, int]:
    position = 0
    while (line_end := data.find(b"\r\n", position)) >= 0:
        if data[position : position + 4] != b"MSG ":
            if data[position : position + 4] == b"PING":
                out.append(b"PONG\r\n")
            position = line_end + 2
            continue
        subject, _, size = data[position + 4 : line_end].split(b" ")
        end = line_end + 4 + int(size)
        if end > len(data):
            return position, end - len(data)
        answer = await shout(data[line_end + 2 : end - 2])
        out.append(b"PUB out.%b %d\r\n%b\r\n" % (subject[3:], len(answer), answer))
        position = end
    return position, 0


if __name__ == "__main__":
    trio.run(route, sys.argv[1], "--handler" in sys.argv)
