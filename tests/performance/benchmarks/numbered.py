"""Numbered messages, and the verdict on them: which are lost, duplicated, and out of order.

They arrive in the stream OUT, which keeps them while the server is killed and started again, and in their order.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import trio

from tests.performance.benchmarks.wire import MARK, Wire, WireError

SUBJECTS = 100
"""Subjects; order is checked within each."""
SIZE = 128
FILL_CHUNK = 2_000
FILLED_WITHIN = 60.0
READ_WITHIN = 30.0
FEED_EVERY = 0.005
_NUMBER = re.compile(re.escape(MARK) + rb"(\d{7});")
PROBE = b"PUB in.probe 6\r\n%bprobe\r\n" % MARK
"""A payload with the mark that every message has, and without a number."""


@dataclass(frozen=True)
class Verdict:
    """How many of the messages are lost, how many copies are too many, and how many arrived after a later one."""

    lost: int
    doubled: int
    out_of_order: int


def verdict(sent: int, arrived: Iterable[int]) -> Verdict:
    """Judge which of the numbers below `sent` arrived. An extra copy does not count as out of order as well."""
    seen: set[int] = set()
    last = [-1] * SUBJECTS
    doubled = out_of_order = 0
    for number in arrived:
        if number in seen:
            doubled += 1
            continue
        seen.add(number)
        subject = number % SUBJECTS
        out_of_order += number < last[subject]
        last[subject] = max(last[subject], number)
    return Verdict(sent - len(seen), doubled, out_of_order)


def frames(first: int, end: int) -> bytes:
    """Return publishes with the numbers from `first` to below `end`."""
    rest = b"x" * (SIZE - len(MARK) - 8)
    return b"".join(
        b"PUB in.%03d %d\r\n%b%07d;%b\r\n" % (number % SUBJECTS, SIZE, MARK, number, rest)
        for number in range(first, end)
    )


async def feed(url: str, count: int, rate: int) -> None:
    """Publish `count` messages, evenly spaced; a late one is sent at once."""
    with closing(Wire(url)) as wire:
        start = trio.current_time()
        sent = 0
        while sent < count:
            due = min(count, int((trio.current_time() - start) * rate))
            # To a server on this machine that is never killed: it accepts them at once.
            wire.socket.sendall(frames(sent, due))
            sent = due
            await trio.sleep(FEED_EVERY)
        wire.fence()


def publish_all(url: str, count: int) -> None:
    """Publish `count` messages into the stream IN; return when they are stored. Raises `WireError`."""
    deadline = time.monotonic() + FILLED_WITHIN
    with closing(Wire(url)) as out, closing(Wire(url)) as asking:
        for first in range(0, count, FILL_CHUNK):
            end = min(count, first + FILL_CHUNK)
            out.socket.sendall(frames(first, end))
            while stored(asking, "IN") < end:
                if time.monotonic() > deadline:
                    raise WireError(f"{count} messages were not stored within {FILLED_WITHIN:g} s")
                time.sleep(0.002)


def stored(wire: Wire, stream: str) -> int:
    """Return how many messages a stream has."""
    count: int = wire.request(f"$JS.API.STREAM.INFO.{stream}")["state"]["messages"]
    return count


def arrived(url: str) -> list[int]:
    """Return the numbers of the messages that OUT has, in order. Raises `WireError` if they can't be read in time."""
    deadline = time.monotonic() + READ_WITHIN
    with closing(Wire(url)) as reader, closing(Wire(url)) as asking:
        expected = stored(asking, "OUT")
        reader.subscribe("_INBOX.read")
        config = {"deliver_subject": "_INBOX.read", "ack_policy": "none", "deliver_policy": "all"}
        asking.request("$JS.API.CONSUMER.CREATE.OUT", {"stream_name": "OUT", "config": config})
        parts: list[bytes] = []
        found = 0
        while found < expected:
            parts.append(reader.receive())
            found += parts[-1].count(MARK)
            if time.monotonic() > deadline:
                raise WireError(f"{found} of {expected} messages were read within {READ_WITHIN:g} s")
        return [int(number) for number in _NUMBER.findall(b"".join(parts))]
