"""The load of the stream workload: fills one stream, and observes how another one fills from it.

The destination is observed through its own count of stored messages, a few dozen times a second. A subscription would
double the server's cost per message, and prove less: that something was published, not stored.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from tests.performance.benchmarks.load import ROUTED_WITHIN, Block, ClosedLoop, Reading, say_ready
from tests.performance.benchmarks.wire import Wire, WireError, payload_of

LOOK_EVERY = 0.02
ACKED_WITHIN = 5.0
FILL_WINDOW = 4096
CONSUMER = "bench"


SOURCED = [{"name": "IN", "subject_transforms": [{"src": "in.*", "dest": "out.{{wildcard(1)}}"}]}]
"""The configuration with which the server itself copies IN."""


def create_streams(wire: Wire) -> None:
    """Recreate IN and OUT, on file, and a durable consumer of IN."""
    create_source(wire)
    create_destination(wire)


def create_source(wire: Wire, **consumer: Any) -> None:
    """Recreate IN and its durable consumer, with the settings in `consumer`."""
    _create(wire, "IN", subjects=["in.*"])
    config = {"durable_name": CONSUMER, "ack_policy": "explicit", "max_ack_pending": 10_000, "filter_subject": "in.*"}
    body = {"stream_name": "IN", "config": config | consumer}
    wire.request(f"$JS.API.CONSUMER.DURABLE.CREATE.IN.{CONSUMER}", body)


def create_destination(wire: Wire, **config: Any) -> None:
    """Recreate OUT, with the settings in `config`."""
    _create(wire, "OUT", **{"subjects": ["out.*"]} | config)


def _create(wire: Wire, name: str, **config: Any) -> None:
    _delete(wire, name)
    defaults = {"name": name, "storage": "file", "retention": "limits", "num_replicas": 1}
    wire.request(f"$JS.API.STREAM.CREATE.{name}", defaults | config)


def _delete(wire: Wire, name: str) -> None:
    with suppress(WireError):
        wire.request(f"$JS.API.STREAM.DELETE.{name}")


def fill_source(url: str, count: int, payload: int, tokens: int) -> None:
    """Publish `count` messages into IN, each with its PubAck."""
    block = Block("in.", tokens, payload_of(payload), reply="_INBOX.fill")
    loop = ClosedLoop(url, block, "_INBOX.fill", FILL_WINDOW, mark=b"{")
    loop.run(time.perf_counter() + 60, most=count)
    if loop.received < count:
        raise WireError(f"only {loop.received} of {count} messages were stored in 60 s")


def stream(spec: dict[str, Any]) -> dict[str, Any]:
    """Fill IN with `messages`, then time how OUT fills: at most for `seconds`, after a tenth as warm-up.

    `sourced`: no contestant fills it, but the server, as OUT has IN for its source.
    """
    wire = Wire(spec["url"])
    create_streams(wire)
    sourced = spec.get("sourced", False)
    total = spec["messages"]
    fill_source(spec["url"], total, spec["payload"], spec["tokens"])
    pid = say_ready()
    if sourced:
        create_destination(wire, sources=SOURCED, subjects=[])

    def reading() -> Reading:
        state = wire.request("$JS.API.STREAM.INFO.OUT")["state"]
        return Reading.take(state["messages"], pid, spec["server_pid"])

    deadline = time.perf_counter() + ROUTED_WITHIN
    start = reading()
    first_at: float | None = None
    while start.received < total // 20 or first_at is None or start.at - first_at < spec["warm_up"]:
        if start.received and first_at is None:
            first_at = start.at
        if start.received >= total // 3:
            break
        if first_at is None and start.at > deadline:
            raise WireError(f"nothing was routed within {ROUTED_WITHIN:g} s")
        time.sleep(LOOK_EVERY)
        start = reading()
    end = start
    while end.received < total and end.at - start.at < spec["seconds"]:
        time.sleep(LOOK_EVERY)
        end = reading()
    result = start.until(end)
    result["complete"] = end.received >= total
    if sourced:
        result["lost"] = abs(end.received - total) if result["complete"] else 0
    else:
        result["lost"] = _left(wire, total) if result["complete"] else _acked_too_soon(wire)
    return result


def _acked_too_soon(wire: Wire) -> int:
    """Return how many of the source's messages are acked and not in the destination, in the middle of a run."""
    acked: int = max(consumer["ack_floor"]["stream_seq"] for consumer in _consumers(wire))
    stored: int = wire.request("$JS.API.STREAM.INFO.OUT")["state"]["messages"]
    return max(0, acked - stored)


def _left(wire: Wire, total: int) -> int:
    """Return how many of the source's messages are not acked a while after the last one was stored, plus duplicates."""
    deadline = time.monotonic() + ACKED_WITHIN
    while True:
        left: int = min(consumer["num_pending"] + consumer["num_ack_pending"] for consumer in _consumers(wire))
        if not left or time.monotonic() > deadline:
            break
        time.sleep(LOOK_EVERY)
    stored: int = wire.request("$JS.API.STREAM.INFO.OUT")["state"]["messages"]
    return left + abs(stored - total)


def _consumers(wire: Wire) -> list[dict[str, Any]]:
    """Return the consumers of the source: ours, and that of a contestant that insists on its own."""
    found: list[dict[str, Any]] = wire.request("$JS.API.CONSUMER.LIST.IN", {})["consumers"]
    return found
