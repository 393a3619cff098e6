"""The load of the latency workload: messages at a fixed rate, each carrying the time at which it was due.

The due time, not the send time: a generator or contestant that falls behind is measured as late, instead of being sent
less.
"""

from __future__ import annotations

import ctypes
import select
import time
from typing import Any

from tests.performance.benchmarks.load import ROUTED_WITHIN, SILENCE, say_ready
from tests.performance.benchmarks.load_stream import create_streams
from tests.performance.benchmarks.processor import processor_seconds
from tests.performance.benchmarks.wire import MARK, Wire, WireError

DIGITS = 19
_PR_SET_TIMERSLACK = 29


def paced(spec: dict[str, Any]) -> dict[str, Any]:
    """Send `rate` messages a second for `seconds` after `warm_up`; return the latencies in microseconds, sorted."""
    # Otherwise the kernel may prolong every wait by 50 us.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    out, sink = Wire(spec["url"]), Wire(spec["url"])
    if spec["streams"]:
        create_streams(Wire(spec["url"]))
    sink.subscribe(spec["listen"])
    pid = say_ready()
    head = b"x" * (spec["payload"] - DIGITS - 1) + MARK
    size = spec["payload"]
    frame = b"PUB %b%%04d %d\r\n%b%%0%dd\r\n" % (spec["prefix"].encode(), size, head, DIGITS)
    _wait_until_routed(out, sink, frame)

    interval = round(1e9 / spec["rate"])
    start = time.monotonic_ns() + 10_000_000
    measured_from = start + round(spec["warm_up"] * 1e9)
    end = measured_from + round(spec["seconds"] * 1e9)
    due, sent, received = start, 0, 0
    latencies: list[int] = []
    rest = b""
    cpu_before: float | None = None
    last_heard = start
    sink.socket.setblocking(False)
    while True:
        now = time.monotonic_ns()
        if cpu_before is None and now >= measured_from:
            cpu_before = processor_seconds(pid) if pid else 0.0
        frames = []
        while due <= now and due < end:
            frames.append(frame % (sent % 1000, due))
            sent += 1
            due += interval
        if frames:
            out.socket.sendall(b"".join(frames))
        if due >= end and (received == sent or now - last_heard > SILENCE * 1e9):
            break
        wait = max(0.0, (due - time.monotonic_ns()) / 1e9) if due < end else 0.1
        if select.select([sink.socket], [], [], wait)[0]:
            data = rest + sink.receive()
            last_heard = arrived = time.monotonic_ns()
            before, *pieces = data.split(MARK)
            rest = before[-64:] if not pieces else b""
            for piece in pieces:
                if len(piece) < DIGITS:
                    rest = MARK + piece
                    break
                since = int(piece[:DIGITS])
                received += 1
                if since >= measured_from:
                    latencies.append(arrived - since)
    cpu = (processor_seconds(pid) if pid else 0.0) - (cpu_before or 0.0)
    latencies.sort()
    found = len(latencies)
    if not found:
        raise WireError("no message arrived; is the contestant routing?")
    return {
        "rate": found / spec["seconds"],
        "cpu_us": cpu / found * 1e6,
        "lost": sent - received,
        **{name: latencies[min(found - 1, int(found * share))] / 1e3 for name, share in PERCENTILES.items()},
        "max": latencies[-1] / 1e3,
    }


PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def _wait_until_routed(out: Wire, sink: Wire, frame: bytes) -> None:
    """Send messages until one is routed, then wait until all are."""
    deadline = time.monotonic() + ROUTED_WITHIN
    probe = (frame % (0, 0)).replace(MARK, b".")
    sink.socket.settimeout(0.01)
    while time.monotonic() < deadline:
        out.socket.sendall(probe)
        try:
            # Not everything received is a message: the server may measure a round trip.
            if b"MSG " in sink.receive():
                break
        except TimeoutError:
            continue
    else:
        raise WireError(f"nothing was routed within {ROUTED_WITHIN:g} s")
    sink.socket.settimeout(0.3)
    try:
        while True:
            sink.receive()
    except TimeoutError:
        pass
