"""Bytes that no server sends, for every step of a session, drawn from a seed.

A step is done as a server would do it, nearly so, or not at all. Answers to JetStream requests and publishes are not
included.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

import trio

from tests.support.impostors import Caller, Play

STEP_WITHIN = 0.5
"""Seconds for which a step waits for the data that it would answer: the other side may have nothing to send."""

SIZES = (b"-1", b"+1", b"1_0", b"01", b"\xd9\xa1", b"9" * 5_000, b"67108865", b"1e3", b" 1", b"", b"0x1", b"NaN", b"5")
SUBJECTS = (
    *(b"in.1", b"in.", b"in", b".", b"", b">", b"*", b"other", b"in.\xff\xfe", b"in.\x0b", b"in.\x00"),
    b"x" * 70_000,
)
BLOCKS = (
    *(b"NATS/1.0", b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0 \xff\r\n\r\n", b"\x00", b"\r\n\r\n"),
    *(b"NATS/1.0 \xd9\xa1\r\n\r\n", b"NATS/1.0\r\n: \r\n:\r\n\r\n", b"NATS/1.0\r\nA:b"),
    b"NATS/1.0 " + b"9" * 5_000 + b"\r\n\r\n",
    b"NATS/1.0\r\ntraceparent: 00-" + b"0" * 5_000 + b"\r\n\r\n",
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 10**4_000, 1.5, "", "text", "\x00", "\ud800", "x" * 1_000, [], {}, [[[]]]),
    *(["127.0.0.1:99999"], ["[::1"], [None, {}], ["a b:1"] * 1_000, "127.0.0.1:4222"),
)
RAW_VALUES = (b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 5_000, b"[" * 50_000, b'{"a":' * 50_000, b"\xff", b"")
FIELDS = (
    *("max_payload", "max_control_line", "connect_urls", "ldm", "nonce", "headers", "version", "auth_required"),
    *("tls_required", "tls_available", "jetstream", "domain", "client_id", "client_ip", "proto", "server_id", "x"),
)
LINES = (
    *(b"", b"\r\n", b"\n", b"\x00\xff\r\n", b"WHAT\r\n", b"+OK\r\n", b"PING\r\n" * 50),
    *(b"PONG", b"PONG\r\n", b"PONGO\r\n", b"INFO\r\n", b"INFO {}{}\r\n", b"info {}\r\n"),
    *(b"-ERR\r\n", b"-ERR '\r\n", b"-ERR \xff\x00\r\n", b"-ERR 'Invalid Subject'\r\n", b"-ERR " * 9_000),
    *(b"-ERR 'Authorization Violation'\r\n", b"-ERR 'Stale Connection'\r\n"),
    b"-ERR 'Permissions Violation for Publish to \"\"'\r\n",
    b"-ERR 'Permissions Violation for Publish to \"\xff\"'\r\n",
    b"-ERR 'Permissions Violation for Subscription to \"in.*\"'\r\n",
    b"-ERR 'Permissions Violation for Subscription to \"" + b"x" * 60_000 + b"\"'\r\n",
    *(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01\x02\x00", b"x" * 100_000),
    *(b"CONNECT {}\r\n", b"SUB a 1\r\n", b"PUB a 1\r\nx\r\n", b"MSG\r\n", b"MSG \r\n", b"HMSG\r\n"),
    b"HMSG a 1 5 1\r\nxxxxx\r\n",
)


def info(random: Random) -> bytes:
    """Return an INFO, usually with an error in it."""
    fields = {"version": "2.15.1", "proto": 1, "headers": True, "max_payload": 1048576, "nonce": "abc"}
    wrong: dict[str, Any] = {random.choice(FIELDS): random.choice(VALUES) for _ in range(random.randint(0, 2))}
    text = json.dumps(fields | wrong).encode()
    if random.random() < 0.3:
        text = b'%b, "%b": %b}' % (text[:-1], random.choice(FIELDS).encode(), random.choice(RAW_VALUES))
    return b"INFO %b\r\n" % text


def frame(random: Random, sids: list[bytes]) -> bytes:
    """Return a message for one of these subscriptions or another one, usually with an error in it."""
    sid = random.choice([*sids, *sids, b"1", b"2", b"1000001", b"-1", b"9" * 5_000, b"x", b"", b"\xd9\xa1", b"1.5"])
    words = [random.choice(SUBJECTS), sid, *random.choice([[], [], [b"reply"], [b"_INBOX.x.1"], [b"\xff"], [b""]])]
    block = random.choice([b"", b"", *BLOCKS])
    body = random.choice([b"", b"x", b"\r\n", b"MSG a 1 1\r\nx\r\n", b"\x00" * 1_000])
    if block:
        words.append(b"%d" % len(block) if random.random() < 0.8 else random.choice(SIZES))
    words.append(b"%d" % (len(block) + len(body)) if random.random() < 0.7 else random.choice(SIZES))
    end = b"\r\n" if random.random() < 0.9 else b"xx"
    return b"%b %b\r\n%b%b%b" % (b"HMSG" if block else b"MSG", b" ".join(words), block, body, end)


def session(random: Random) -> Play:
    """Return a session that is correct up to some step, and wrong from there."""
    good_steps = random.randint(0, 4)

    def step(number: int, good: bytes) -> bytes:
        if number < good_steps:
            return good
        bad = random.choice([info(random), random.choice(LINES), random.randbytes(random.randint(0, 200)), good])
        return random.choice([bad, bad + good, good + bad])

    async def play(caller: Caller) -> None:
        await caller.say(step(0, b'INFO {"headers": true, "max_payload": 1048576}\r\n'))
        pings = 0
        for number in range(1, 8):
            with trio.move_on_after(STEP_WITHIN):
                await caller.hear()
            heard = bytes(caller.clear)
            asked, pings = heard.count(b"PING\r\n") - pings, heard.count(b"PING\r\n")
            await caller.say(step(number, b"PONG\r\n" * asked))
            if number >= good_steps:
                sids = [line.split(b" ")[-1] for line in heard.split(b"\r\n") if line.startswith(b"SUB in.")]
                frames = b"".join(frame(random, sids or [b"3"]) for _ in range(random.randint(0, 4)))
                await caller.say(frames[: random.choice([1_000_000, len(frames) // 2])])
            if random.random() < 0.15:
                break
        await caller.close()

    return play
