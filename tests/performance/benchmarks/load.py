"""The load generator: a process of its own, never the bottleneck, and the only clock.

It gets its job as JSON in its only argument, prints `ready` on stdout, reads the contestant's process id (0 for none)
from stdin, measures, and prints the result as JSON. The closed loop keeps a fixed number of messages under way, so that
no contestant is sent more than it can hold: a lost message is the contestant's fault, and reported.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.performance.benchmarks.processor import processor_seconds, resident_bytes
from tests.performance.benchmarks.wire import MARK, Wire, WireError, payload_of

BLOCK_BYTES = 2 << 20
"""Size of the block of frames, built once, and sent again and again."""
ROUTED_WITHIN = 20.0
"""Seconds allowed from a contestant's start to its first message."""
SILENCE = 3.0
"""Seconds without a message after which missing ones count as lost."""


class Block:
    """Prebuilt frames of equal length, repeated without end."""

    def __init__(
        self,
        prefix: str,
        tokens: int,
        payload: bytes,
        *,
        routes: int = 0,
        reply: str = "",
        header_blocks: Sequence[bytes] = (b"",),
    ) -> None:
        """Build a block. Subjects are `prefix` and a token; between them the number of a route, if there are several.

        The messages have the header blocks in turn; `b""` is none.
        """
        reply = f"{reply} " if reply else ""
        frames = []
        for number in range(max(routes, min(tokens, BLOCK_BYTES // (len(payload) + 32) + 1))):
            route = f"{number % routes:04d}." if routes else ""
            block = header_blocks[number % len(header_blocks)]
            word, sizes = ("HPUB", f"{len(block)} ") if block else ("PUB", "")
            sizes += f"{len(block) + len(payload)}"
            head = f"{word} {prefix}{route}{number % tokens:04d} {reply}{sizes}\r\n"
            frames.append(b"%b%b%b\r\n" % (head.encode(), block, payload))
        self.first_frame = frames[0]
        self.frame_size = len(frames[0])
        self._bytes = memoryview(b"".join(frames))
        self._offset = 0

    def ahead(self, allowed: int) -> memoryview:
        """Return the next bytes, at most `allowed`."""
        return self._bytes[self._offset : self._offset + allowed]

    def advance(self, sent: int) -> None:
        """Record that this many bytes are sent."""
        self._offset = (self._offset + sent) % len(self._bytes)


@dataclass
class Reading:
    """The clocks and counters at one moment."""

    at: float
    received: int
    contestant: float
    generator: float
    server: float

    @classmethod
    def take(cls, received: int, pid: int, server_pids: Sequence[int]) -> Reading:
        """Take a reading."""
        contestant = processor_seconds(pid) if pid else 0.0
        servers = sum(processor_seconds(server_pid) for server_pid in server_pids)
        return cls(time.perf_counter(), received, contestant, time.process_time(), servers)

    def until(self, end: Reading) -> dict[str, Any]:
        """Return the measurement between two readings; processor times in microseconds per message, or as a share of
        one.
        """
        seconds = end.at - self.at
        messages = end.received - self.received
        return {
            "messages": messages,
            "seconds": seconds,
            "rate": messages / seconds,
            "cpu_us": (end.contestant - self.contestant) / max(messages, 1) * 1e6,
            "contestant_busy": (end.contestant - self.contestant) / seconds,
            "generator_busy": (end.generator - self.generator) / seconds,
            "server_busy": (end.server - self.server) / seconds,
        }


class ClosedLoop:
    """Sends while fewer than `window` messages are under way, and counts arrivals."""

    def __init__(self, url: str, block: Block, listen: str, window: int, mark: bytes = MARK) -> None:
        self._mark = mark
        self._block = block
        self._window = window * block.frame_size
        self._out = Wire(url)
        self._sink = Wire(url)
        self._sink.subscribe(listen)
        self._sent_bytes = 0
        self.received = 0
        self.routed_at = 0.0

    @property
    def sent(self) -> int:
        """The number of complete messages that were sent."""
        return self._sent_bytes // self._block.frame_size

    def wait_until_routed(self, subject: str, *, every: float = 0.01, probe: bytes = b"") -> None:
        """Send unmarked messages, or frames of `probe`, until one is routed. Raises `WireError` if none is."""
        probe = probe or b"PUB %b 1\r\n.\r\n" % subject.encode()
        deadline = time.monotonic() + ROUTED_WITHIN
        self._sink.socket.settimeout(every)
        while time.monotonic() < deadline:
            self._out.socket.sendall(probe)
            try:
                # Not everything received is a message: the server may measure a round trip.
                if b"MSG " not in self._sink.receive():
                    continue
            except TimeoutError:
                continue
            self.routed_at = time.perf_counter()
            break
        else:
            raise WireError(f"nothing was routed within {ROUTED_WITHIN:g} s")
        # The other probes are still under way.
        self._sink.socket.settimeout(0.2)
        try:
            while True:
                self._sink.receive()
        except TimeoutError:
            pass

    def run(self, until: float, most: int | None = None) -> None:
        """Send and count until a time of `time.perf_counter`, or until `most` messages were sent and returned."""
        out, sink, block = self._out.socket, self._sink, self._block
        size = block.frame_size
        limit = most * size if most is not None else 1 << 62
        # Small pieces would cost the generator a system call each; it waits until a share of the window is free.
        piece = max(size, self._window // 16)
        poll = select.poll()
        poll.register(sink.socket, select.POLLIN)
        poll.register(out, 0)
        out.setblocking(False)
        sink.socket.settimeout(SILENCE)
        waiting_to_write = False
        while time.perf_counter() < until and (most is None or self.received < most):
            allowed = min(self._window + self.received * size, limit) - self._sent_bytes
            may_send = allowed >= piece or (allowed > 0 and self._sent_bytes + allowed == limit)
            if may_send != waiting_to_write:
                poll.modify(out, select.POLLOUT if may_send else 0)
                waiting_to_write = may_send
            events = poll.poll(SILENCE * 1000)
            if not events:
                return
            for descriptor, _ in events:
                if descriptor == out.fileno():
                    sent = out.send(block.ahead(allowed))
                    block.advance(sent)
                    self._sent_bytes += sent
                else:
                    self._count(sink.receive())

    def settle(self) -> int:
        """Finish a partially sent frame, wait for the messages under way, and return how many did not arrive."""
        size = self._block.frame_size
        self._out.socket.settimeout(SILENCE)
        while rest := -self._sent_bytes % size:
            sent = self._out.socket.send(self._block.ahead(rest))
            self._block.advance(sent)
            self._sent_bytes += sent
        self._sink.socket.settimeout(SILENCE)
        try:
            while self.received < self.sent:
                self._count(self._sink.receive())
        except TimeoutError:
            pass
        return self.sent - self.received

    def _count(self, data: bytes) -> None:
        self.received += data.count(self._mark)
        if data.find(b'"error"') >= 0:
            raise WireError(f"a publish was refused: {data[:300]!r}")


def closed(spec: dict[str, Any]) -> dict[str, Any]:
    """Route at full speed: `prefix` -> `listen`, for `seconds` after `warm_up`.

    `payload` is a number of bytes, or the payload itself, with one mark; `headers` are the lines of header blocks.
    """
    routes = spec.get("routes", 0)
    text = spec["payload"]
    payload = text.encode() if isinstance(text, str) else payload_of(text)
    blocks = [f"NATS/1.0\r\n{line}\r\n\r\n".encode() for line in spec.get("headers", ())]
    block = Block(spec["prefix"], spec["tokens"], payload, routes=routes, header_blocks=blocks or (b"",))
    loop = ClosedLoop(spec["url"], block, spec["listen"], spec["window"])
    pid = say_ready()
    # A route by content takes nothing else.
    probe = block.first_frame if blocks or isinstance(text, str) else b""
    loop.wait_until_routed(spec["prefix"] + ("0000.0000" if routes else "0000"), probe=probe)
    loop.run(time.perf_counter() + spec["warm_up"])
    start = Reading.take(loop.received, pid, spec["server_pids"])
    loop.run(start.at + spec["seconds"])
    end = Reading.take(loop.received, pid, spec["server_pids"])
    lost = loop.settle()
    if end.received == start.received:
        raise WireError(f"nothing came out while it was measured; {lost} of {loop.sent} messages are lost")
    return start.until(end) | {"lost": lost}


def first(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure the time from the contestant's start to the first message that it routes."""
    loop = ClosedLoop(spec["url"], Block("in.", 1, payload_of(8)), "out.*", 1)
    pid = say_ready()
    start = time.perf_counter()
    loop.wait_until_routed("in.0000", every=0.002)
    return {"seconds": loop.routed_at - start, "cpu_seconds": processor_seconds(pid) if pid else 0.0}


def idle(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure the cost of an idle contestant, as a share of one processor in per cent."""
    pid = say_ready()
    time.sleep(spec["settle"])
    start = Reading.take(0, pid, spec["server_pids"])
    time.sleep(spec["seconds"])
    end = Reading.take(0, pid, spec["server_pids"])
    return {"idle_percent": 100 * start.until(end)["contestant_busy"], "resident_mb": resident_bytes(pid) / 1e6}


def say_ready() -> int:
    """Signal the driver to start the contestant, and return its process id; 0 for none."""
    print("ready", flush=True)
    return int(sys.stdin.readline())


def main() -> None:
    """Run the job in the first argument."""
    from tests.performance.benchmarks.load_paced import paced
    from tests.performance.benchmarks.load_stream import stream

    spec = json.loads(sys.argv[1])
    jobs = {"closed": closed, "stream": stream, "paced": paced, "first": first, "idle": idle}
    print(json.dumps(jobs[spec["job"]](spec)), flush=True)


if __name__ == "__main__":
    main()
