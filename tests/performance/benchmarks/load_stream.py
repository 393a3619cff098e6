"""The load of the stream workload: fills one stream, and observes how another one fills from it.

The destination is observed through its own count of stored messages, a few dozen times a second. A subscription would
double the server's cost per message, and prove less: that something was published, not stored.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import closing, suppress
from typing import Any

from tests.performance.benchmarks.load import ROUTED_WITHIN, Block, ClosedLoop, Reading, say_ready
from tests.performance.benchmarks.wire import Wire, WireError, payload_of

LOOK_EVERY = 0.02
ACKED_WITHIN = 5.0
LED_WITHIN = 20.0
FILL_WINDOW = 4096
WHOLE_WITHIN = 60.0
CONSUMER = "bench"
BUCKETS = ("in", "out")
LONGEST_HISTORY = 64

SOURCED = [{"name": "IN", "subject_transforms": [{"src": "in.*", "dest": "out.{{wildcard(1)}}"}]}]
"""The configuration with which the server itself copies IN."""


def create_streams(wire: Wire, sources: int = 0, replicas: int = 1) -> None:
    """Recreate the source streams and OUT, on file, with a durable consumer of each source.

    With `sources` those are IN-0000 and so on, else IN. With several `replicas` the first server of the cluster leads
    the sources and their consumers, the second one leads OUT.
    """
    for name in wire.request("$JS.API.STREAM.NAMES")["streams"] or ():
        _delete(wire, name)
    for name, subject in source_streams(sources).items():
        create_source(wire, name, subject, replicas)
    create_destination(wire, subjects=["out.>"], num_replicas=replicas)
    if replicas > 1:
        for name in source_streams(sources):
            lead(wire.url, "STREAM", name, "node1")
            lead(wire.url, "CONSUMER", f"{name}.{CONSUMER}", "node1")
        lead(wire.url, "STREAM", "OUT", "node2")


def source_streams(sources: int) -> dict[str, str]:
    """Return the subject of each source stream, by its name."""
    return {f"IN-{number:04d}": f"in.{number:04d}.*" for number in range(sources)} or {"IN": "in.*"}


def create_source(wire: Wire, name: str = "IN", subject: str = "in.*", replicas: int = 1, **consumer: Any) -> None:
    """Recreate a source stream and its durable consumer, with the settings in `consumer`."""
    _create(wire, name, subjects=[subject], num_replicas=replicas)
    config = {"durable_name": CONSUMER, "ack_policy": "explicit", "max_ack_pending": 10_000, "filter_subject": subject}
    body = {"stream_name": name, "config": config | consumer}
    wire.request(f"$JS.API.CONSUMER.DURABLE.CREATE.{name}.{CONSUMER}", body)


def lead(url: str, kind: str, name: str, server: str) -> None:
    """Have a server lead a STREAM or a CONSUMER. Raises `WireError` if it does not in time.

    Requests during an election fail or have no answer, so each attempt has a connection of its own.
    """
    deadline = time.monotonic() + LED_WITHIN
    while time.monotonic() < deadline:
        with suppress(WireError, TimeoutError), closing(Wire(url)) as wire:
            wire.socket.settimeout(LED_WITHIN / 10)
            leader = wire.request(f"$JS.API.{kind}.INFO.{name}")["cluster"].get("leader")
            if leader == server:
                return
            if leader:
                wire.request(f"$JS.API.{kind}.LEADER.STEPDOWN.{name}", {"placement": {"preferred": server}})
        time.sleep(LOOK_EVERY)
    raise WireError(f"{server} does not lead {name} after {LED_WITHIN:g} s")


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


def fill_sources(url: str, count: int, payload: int, tokens: int, sources: int = 0, prefix: str = "in.") -> None:
    """Publish `count` messages into the source streams, one after the other, each with its PubAck."""
    block = Block(prefix, tokens, payload_of(payload), routes=sources, reply="_INBOX.fill")
    loop = ClosedLoop(url, block, "_INBOX.fill", FILL_WINDOW, mark=b"{")
    loop.run(time.perf_counter() + 60, most=count)
    if loop.received < count:
        raise WireError(f"only {loop.received} of {count} messages were stored in 60 s")


def create_buckets(wire: Wire) -> None:
    """Recreate the buckets `in` and `out`, on file, with the longest history that a bucket may have."""
    for name in wire.request("$JS.API.STREAM.NAMES")["streams"] or ():
        _delete(wire, name)
    config = {"discard": "new", "allow_rollup_hdrs": True, "deny_delete": True, "allow_direct": True}
    for name in BUCKETS:
        _create(wire, f"KV_{name}", subjects=[f"$KV.{name}.>"], max_msgs_per_subject=LONGEST_HISTORY, **config)


def stream(spec: dict[str, Any]) -> dict[str, Any]:
    """Fill IN, or the `sources`, with `messages`, then time how OUT fills: at most for `seconds`, after a tenth as
    warm-up; or from the first message to the last one, if the spec asks for the `whole`.

    `sourced`: no contestant fills it, but the server, as OUT has IN for its source. `buckets`: KV_in and KV_out take
    the places of IN and OUT.
    """
    wire = Wire(spec["url"])
    sources = spec.get("sources", 0)
    names: Collection[str] = source_streams(sources)
    copy, prefix = "OUT", "in."
    if spec.get("buckets", False):
        create_buckets(wire)
        names, copy, prefix = ["KV_in"], "KV_out", "$KV.in."
    else:
        create_streams(wire, sources, spec.get("replicas", 1))
    sourced = spec.get("sourced", False)
    total = spec["messages"]
    fill_sources(spec["url"], total, spec["payload"], spec["tokens"], sources, prefix)
    pid = say_ready()
    if sourced:
        create_destination(wire, sources=SOURCED, subjects=[])

    def reading() -> Reading:
        state = wire.request(f"$JS.API.STREAM.INFO.{copy}")["state"]
        return Reading.take(state["messages"], pid, spec["server_pids"])

    deadline = time.perf_counter() + ROUTED_WITHIN
    start = reading()
    first_at: float | None = None
    while first_at is None or not begins(start, first_at, spec):
        if first_at is None and start.at > deadline:
            raise WireError(f"nothing was routed within {ROUTED_WITHIN:g} s")
        time.sleep(LOOK_EVERY)
        start = reading()
        if start.received and first_at is None:
            first_at = start.at
    end = start
    seconds = WHOLE_WITHIN if spec.get("whole") else spec["seconds"]
    while end.received < total and end.at - start.at < seconds:
        time.sleep(LOOK_EVERY)
        end = reading()
    result = start.until(end)
    result["complete"] = end.received >= total
    if sourced:
        result["lost"] = abs(end.received - total) if result["complete"] else 0
    else:
        result["lost"] = _left(wire, names, copy, total) if result["complete"] else _acked_too_soon(wire, names, copy)
    return result


def begins(reading: Reading, first_at: float, spec: dict[str, Any]) -> bool:
    """Return True if the measurement begins with this reading. The first message was stored by `first_at`."""
    total = spec["messages"]
    if spec.get("whole") or reading.received >= total // 3:
        return True
    return bool(reading.received >= total // 20 and reading.at - first_at >= spec["warm_up"])


def _acked_too_soon(wire: Wire, names: Collection[str], copy: str) -> int:
    """Return how many of the sources' messages are acked and not in the copy, in the middle of a run."""
    acked = 0
    for name in names:
        acked += max((consumer["ack_floor"]["stream_seq"] for consumer in _consumers(wire, name)), default=0)
    stored: int = wire.request(f"$JS.API.STREAM.INFO.{copy}")["state"]["messages"]
    return max(0, acked - stored)


def _left(wire: Wire, names: Collection[str], copy: str, total: int) -> int:
    """Return how many of the sources' messages are not acked a while after the last one was stored, plus duplicates."""
    deadline = time.monotonic() + ACKED_WITHIN
    while True:
        left = 0
        for name in names:
            left += min((one["num_pending"] + one["num_ack_pending"] for one in _consumers(wire, name)), default=0)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(LOOK_EVERY)
    stored: int = wire.request(f"$JS.API.STREAM.INFO.{copy}")["state"]["messages"]
    return left + abs(stored - total)


def _consumers(wire: Wire, source: str) -> list[dict[str, Any]]:
    """Return the consumers of a source that ack: ours, and that of a contestant that insists on its own."""
    found: list[dict[str, Any]] = wire.request(f"$JS.API.CONSUMER.LIST.{source}", {})["consumers"]
    return [one for one in found if one["config"]["ack_policy"] != "none"]
