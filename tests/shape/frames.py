"""The frames of a lone message: how often a function of the package is entered while a router processes it.

A router in a process of its own, on a real server, gets one message at a time, from another process. Counted are the
calls of Python functions of the package from the arrival of one message to that of the next: reading it, writing it to
its destination, and its settlement (core: the answered fence; stream: the PubAck and the ack to its source). A resumed
coroutine is a call as well. The work of Trio and nats-py is not counted, except how often Trio resumed a task. The
figures are those of the median message.

Python 3.12 and later have no frame for a list comprehension, unlike 3.11, with which the bounds were measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.websockets import websocket_server

MESSAGES = 120
NOT_COUNTED = 20
"""Number of first messages to skip, for which the caches of subjects are empty."""

EVERY = 0.01
"""Seconds between two messages. Within a tenth of that a message is settled, and the router waits again."""

WITHIN = 60.0
PAYLOAD = b"x" * 128

Function = tuple[str, str]
"""File, relative to the root of the tree, and qualified name."""


@dataclass(frozen=True)
class Frames:
    """The frames of a median message, in order. `spread` has how many messages took how many.

    `turns` is how often a task was resumed for a median message.
    """

    calls: Sequence[Function]
    spread: Counter[int]
    turns: int

    @property
    def count(self) -> int:
        """The number of frames."""
        return len(self.calls)

    @property
    def files(self) -> list[str]:
        """The files that the message enters."""
        return sorted({file for file, _ in self.calls})

    def by_function(self) -> list[str]:
        """Return lines of `count file function`, the most frequent first."""
        return [f"{times:3d}  {file}  {name}" for (file, name), times in Counter(self.calls).most_common()]


async def frames(kind: str, tree: Path) -> Frames:
    """Measure `core`, `stream`, or `websocket`, which is core to core by WebSocket, with the router of a tree.

    Raises `trio.TooSlowError` if it does not route.
    """
    with tempfile.TemporaryDirectory() as directory, trio.fail_after(WITHIN):
        async with websocket_server(Path(directory)) as (server, websocket), connect(server.url) as client:
            if kind == "stream":
                for name, subject in (("IN", "in.*"), ("OUT", "out.*")):
                    await JetStream(client).create_stream(name, [subject])
            url, kind = (websocket, "core") if kind == "websocket" else (server.url, kind)
            noted = await _send_to(client, url, kind, tree)
    messages = noted["messages"][NOT_COUNTED:-1]  # the last message ends with the router
    counts = [len(calls) for calls in messages]
    median = statistics.median_high(counts)
    functions = [(file, name) for file, name in noted["functions"]]
    calls = [functions[number] for number in messages[counts.index(median)]]
    return Frames(calls, Counter(counts), statistics.median_high(noted["turns"][NOT_COUNTED:-1]))


async def _send_to(client: RawClient, url: str, kind: str, tree: Path) -> dict[str, Any]:
    """Start a router, send it the messages. Return its records: see `lone`."""
    lone = Path(__file__).with_name("lone.py")
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", str(lone), url, kind],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = b""
        while not said.endswith(b"ready\n"):
            part = await process.stdout.receive_some()
            if not part:
                raise RuntimeError(f"the router of {tree} does not start")
            said += part
        arrived = await client.subscribe("out.*")
        for number in range(MESSAGES):
            await client.publish(f"in.{number % 7}", PAYLOAD)
            await arrived.next()
            await trio.sleep(EVERY)
        await process.stdin.aclose()
        noted: dict[str, Any] = json.loads(b"".join([part async for part in process.stdout]))
        return noted
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # a killed process is gone soon
            await process.wait()
