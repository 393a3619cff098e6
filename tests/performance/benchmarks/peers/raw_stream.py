"""The limit for streams: a Trio loop on one socket that pulls, publishes with a Msg-Id, and acks stored messages.

`raw_stream.py URL`: stream IN, durable `bench`, `in.TOKEN` -> `out.TOKEN`. It survives nothing.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import trio

READ_SIZE = 256 * 1024
BATCH = 1024
MOST_OPEN = 4096
CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1}\r\n'
PULL_BODY = b'{"batch": %d, "expires": 30000000000}' % BATCH
PULL = b"PUB $JS.API.CONSUMER.MSG.NEXT.IN.bench _INBOX.raw.pull %d\r\n%b\r\n" % (len(PULL_BODY), PULL_BODY)


async def route(url: str) -> None:
    """Route until the connection ends."""
    target = urlsplit(url)
    stream = await trio.open_tcp_stream(target.hostname or "127.0.0.1", target.port or 4222)
    await stream.send_all(CONNECT + b"SUB _INBOX.raw.pull 1\r\nSUB _INBOX.raw.ack.* 2\r\n")
    await stream.send_all(PULL + PULL)
    asked = 2 * BATCH
    number = 0
    sources: dict[bytes, bytes] = {}
    rest = b""
    while data := await stream.receive_some(READ_SIZE):
        data = rest + data
        out: list[bytes] = []
        position = 0
        while (line_end := data.find(b"\r\n", position)) >= 0:
            kind = data[position : position + 4]
            if kind != b"MSG " and kind != b"HMSG":
                if kind == b"PING":
                    out.append(b"PONG\r\n")
                position = line_end + 2
                continue
            words = data[position:line_end].split(b" ")
            end = line_end + 4 + int(words[-1])
            if end > len(data):
                break
            if words[2] == b"2":
                # A PubAck: now the message is acked at the source.
                out.append(b"PUB %b 4\r\n+ACK\r\n" % sources.pop(words[1][15:]))
            elif kind == b"MSG ":
                asked -= 1
                number += 1
                token = b"%d" % number
                sources[token] = words[3]
                block = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % words[3].split(b".", 7)[5]
                out.append(
                    b"HPUB out.%b _INBOX.raw.ack.%b %d %d\r\n%b%b"
                    % (words[1][3:], token, len(block), len(block) + int(words[-1]), block, data[line_end + 2 : end])
                )
            else:
                # A status: a pull request has expired.
                asked = 0
            position = end
        rest = data[position:]
        while asked <= BATCH and len(sources) < MOST_OPEN:
            out.append(PULL)
            asked += BATCH
        if out:
            await stream.send_all(b"".join(out))


if __name__ == "__main__":
    trio.run(route, sys.argv[1])
