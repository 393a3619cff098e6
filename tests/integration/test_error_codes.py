"""A real server answers with the codes of the table, and means what the table quotes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from router_trio.errors.codes import CODES
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import Headers, connect
from tests.support.server_version import server_version
from tests.support.servers import NatsServer, nats_server

ACCOUNTS = """
accounts {
  MAIN { jetstream: enabled, users: [{ user: main, password: main }] }
  SMALL {
    jetstream { max_streams: 1, max_file: 4096, max_consumers: 1 }
    users: [{ user: small, password: small }]
  }
  STRICT {
    jetstream { max_file: 1048576, max_bytes_required: true, disk_max_stream_bytes: 1024 }
    users: [{ user: strict, password: strict }]
  }
  NONE { users: [{ user: none, password: none }] }
}
"""

NS = 1_000_000_000

STREAMS: tuple[dict[str, Any], ...] = (
    {"name": "PLAIN", "subjects": ["plain.*"]},
    {"name": "TINY", "subjects": ["tiny.*"], "max_msg_size": 10},
    {"name": "FULL", "subjects": ["full.*"], "max_msgs": 1, "discard": "new"},
    {"name": "SEALED", "subjects": ["sealed.*"]},
    {"name": "KEPT", "subjects": ["kept.*"], "deny_delete": True},
    {"name": "QUEUE", "subjects": ["queue.*"], "retention": "workqueue"},
    {"name": "TTL", "subjects": ["ttl.*"], "allow_msg_ttl": True},
    {"name": "COUNTS", "subjects": ["counts.*"], "allow_msg_counter": True},
    {"name": "LATER", "subjects": ["later.*"], "allow_msg_schedules": True, "allow_msg_ttl": True},
    {"name": "ATOMIC", "subjects": ["atomic.*"], "allow_atomic": True},
    {
        "name": "LIMITS",
        "subjects": ["limits.*"],
        "max_consumers": 1,
        "consumer_limits": {"max_ack_pending": 10, "inactive_threshold": 60 * NS},
    },
)

PUBLISHES: tuple[tuple[int, str, bytes, dict[str, str]], ...] = (
    (10054, "tiny.x", b"x" * 100, {}),
    (10077, "full.x", b"", {}),
    (10060, "plain.x", b"", {"Nats-Expected-Stream": "OTHER"}),
    (10071, "plain.x", b"", {"Nats-Expected-Last-Sequence": "99"}),
    (10071, "plain.x", b"", {"Nats-Expected-Last-Subject-Sequence": "99"}),
    (10070, "plain.x", b"", {"Nats-Expected-Last-Msg-Id": "other"}),
    (10193, "plain.x", b"", {"Nats-Expected-Last-Subject-Sequence-Subject": "plain.x"}),
    (10109, "sealed.x", b"", {}),
    (10111, "plain.x", b"", {"Nats-Rollup": "sub"}),
    (10097, "plain.x", b"", {"X": "x" * 70_000}),
    (10165, "ttl.x", b"", {"Nats-TTL": "soon"}),
    (10166, "plain.x", b"", {"Nats-TTL": "1h"}),
    (10168, "plain.x", b"", {"Nats-Incr": "+1"}),
    (10169, "counts.x", b"", {}),
    (10170, "counts.x", b"x", {"Nats-Incr": "+1"}),
    (10171, "counts.x", b"", {"Nats-Incr": "much"}),
    (10174, "plain.x", b"", {"Nats-Batch-Id": "a", "Nats-Batch-Sequence": "1"}),
    (10175, "atomic.x", b"", {"Nats-Batch-Id": "b"}),
    (10176, "atomic.x", b"", {"Nats-Batch-Id": "c", "Nats-Batch-Sequence": "2"}),
    (10179, "atomic.x", b"", {"Nats-Batch-Id": "d" * 65, "Nats-Batch-Sequence": "1"}),
    (10200, "atomic.x", b"", {"Nats-Batch-Id": "e", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "yes"}),
    (
        10177,
        "atomic.x",
        b"",
        {
            "Nats-Batch-Id": "f",
            "Nats-Batch-Sequence": "1",
            "Nats-Batch-Commit": "1",
            "Nats-Expected-Last-Msg-Id": "other",
        },
    ),
    (10188, "plain.x", b"", {"Nats-Schedule": "@at 2099-01-01T00:00:00Z", "Nats-Schedule-Target": "plain.y"}),
    (10189, "later.x", b"", {"Nats-Schedule": "soon", "Nats-Schedule-Target": "later.y"}),
    (10190, "later.x", b"", {"Nats-Schedule": "@at 2099-01-01T00:00:00Z", "Nats-Schedule-Target": "later.x"}),
    (
        10191,
        "later.x",
        b"",
        {
            "Nats-Schedule": "@at 2099-01-01T00:00:00Z",
            "Nats-Schedule-Target": "later.y",
            "Nats-Schedule-TTL": "soon",
        },
    ),
    (
        10192,
        "later.x",
        b"",
        {"Nats-Schedule": "@at 2099-01-01T00:00:00Z", "Nats-Schedule-Target": "later.y", "Nats-Rollup": "all"},
    ),
)

NEWER: tuple[tuple[int, str, bytes, dict[str, str]], ...] = (
    (
        10203,
        "later.x",
        b"",
        {
            "Nats-Schedule": "@at 2099-01-01T00:00:00Z",
            "Nats-Schedule-Target": "later.y",
            "Nats-Schedule-Source": "later.y",
        },
    ),
    (
        10223,
        "later.x",
        b"",
        {"Nats-Schedule": "0 0 9 * * *", "Nats-Schedule-Target": "later.y", "Nats-Schedule-Time-Zone": "Nowhere/Else"},
    ),
    (10212, "later.x", b"", {"Nats-Schedule-Next": "purge", "Nats-Scheduler": "later.x"}),
)
"""Since nats-server 2.14."""


def requests() -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """Yield requests to the API, each with the code of its answer."""
    yield 10059, "STREAM.INFO.MISSING", None
    yield 10037, "STREAM.MSG.GET.PLAIN", {"seq": 99}
    yield 10057, "STREAM.MSG.DELETE.KEPT", {"seq": 1}
    yield 10025, "STREAM.NAMES", {"subject": 7}
    yield 10052, "STREAM.CREATE.ODD", {"name": "ODD", "subjects": ["odd.*"], "duplicate_window": 60 * NS, "max_age": NS}
    yield 10058, "STREAM.CREATE.PLAIN", {"name": "PLAIN", "subjects": ["plain.*"], "max_msgs": 7}
    yield 10065, "STREAM.CREATE.OVER", {"name": "OVER", "subjects": ["plain.*"]}
    yield 10074, "STREAM.CREATE.MANY", {"name": "MANY", "subjects": ["many.*"], "num_replicas": 3}
    yield 10047, "STREAM.CREATE.HUGE", {"name": "HUGE", "subjects": ["huge.*"], "max_bytes": 2**60}
    yield 10028, "STREAM.CREATE.HEAP", {"name": "HEAP", "subjects": ["heap.*"], "max_bytes": 2**60, "storage": "memory"}
    yield 10014, "CONSUMER.INFO.PLAIN.missing", None
    yield 10121, *consumer("LIMITS", max_ack_pending=100)
    yield 10153, *consumer("LIMITS", max_ack_pending=5, inactive_threshold=3600 * NS)
    yield 10094, *consumer("PLAIN", deliver_policy="all", opt_start_seq=7)
    yield 10138, *consumer("PLAIN", filter_subjects=["plain.*", "plain.x"])
    yield 10101, *consumer("QUEUE", filter_subject="queue.new", deliver_policy="new")
    yield 10099, *consumer("QUEUE", durable="other")
    yield 10100, *consumer("QUEUE", durable="other", filter_subject="queue.x")
    yield 10149, "CONSUMER.DURABLE.CREATE.PLAIN.gone", consumer("PLAIN", durable="gone")[1] | {"action": "update"}
    yield 10160, "CONSUMER.UNPIN.PLAIN.plain", {"group": "router"}
    yield 10012, *consumer("PLAIN", durable="plain", deliver_policy="new")


def consumer(stream: str, *, durable: str = "d", **config: Any) -> tuple[str, dict[str, Any]]:
    fields = {"durable_name": durable, "ack_policy": "explicit", "deliver_policy": "all"} | config
    return f"CONSUMER.DURABLE.CREATE.{stream}.{durable}", {"stream_name": stream, "config": fields}


class Answers:
    """The codes that were provoked, and those that differ."""

    def __init__(self) -> None:
        self.provoked: set[int] = set()
        self.wrong: list[str] = []

    async def ask(self, streams: JetStream, code: int, request: str, body: dict[str, Any] | None) -> None:
        try:
            await streams.api(request, body, within=5)
        except JetStreamError as error:
            self._compare(code, request, error)
        else:
            self.wrong.append(f"{code}: {request} was accepted")

    async def publish(self, streams: JetStream, code: int, subject: str, payload: bytes, headers: Headers) -> None:
        try:
            await streams.publish(subject, payload, headers)
        except JetStreamError as error:
            self._compare(code, f"{subject} {headers!r:.80}", error)
        else:
            self.wrong.append(f"{code}: a publish to {subject} was accepted")

    def _compare(self, code: int, what: str, error: JetStreamError) -> None:
        self.provoked.add(error.err_code)
        if error.err_code != code:
            self.wrong.append(f"{code}: {what} got {error}")
        elif not any(word in str(error).lower() for word in CODES[code].words.lower().split() if len(word) > 3):
            self.wrong.append(f"{code}: {error} is not {CODES[code].words!r}")


@asynccontextmanager
async def as_user(server: NatsServer, user: str) -> AsyncIterator[JetStream]:
    async with connect(server.url, user=user, password=user) as client:
        yield JetStream(client)


async def test_a_server_answers_with_the_codes_of_the_table(tmp_path: Path) -> None:
    answers = Answers()
    async with nats_server(tmp_path, config=ACCOUNTS) as server:
        async with as_user(server, "main") as streams:
            for one in STREAMS:
                await streams.create_stream(**one)
            await streams.publish("full.x")
            await streams.publish("kept.x")
            await streams.create_consumer("PLAIN", "plain")
            await streams.create_consumer("QUEUE", "queue")
            await streams.edit_stream("SEALED", sealed=True)
            for code, subject, payload, headers in PUBLISHES + (NEWER if server_version() >= (2, 14, 0) else ()):
                await answers.publish(streams, code, subject, payload, headers)
            if server_version() >= (2, 15, 0):
                await answers.publish(streams, 10227, "plain.x", b"", {"Nats-Stream-Source": "OTHER 1"})
            if server_version() >= (2, 12, 0):
                headers = {"Nats-Required-Api-Level": "99"}
                await answers.publish(streams, 10185, "$JS.API.STREAM.INFO.PLAIN", b"", headers)
            for code, request, body in requests():
                await answers.ask(streams, code, request, body)
            await streams.create_consumer("LIMITS", "one", max_ack_pending=5, inactive_threshold=NS)
            await answers.ask(streams, 10026, *consumer("LIMITS", max_ack_pending=5, inactive_threshold=NS))
        async with as_user(server, "small") as streams:
            await streams.create_stream("ONE", ["one.*"])
            await answers.ask(streams, 10027, "STREAM.CREATE.TWO", {"name": "TWO", "subjects": ["two.*"]})
            await streams.publish("one.x", b"x" * 5000)  # what is stored counts only for the next one
            await answers.publish(streams, 10002, "one.x", b"x", {})
        async with as_user(server, "strict") as streams:
            await answers.ask(streams, 10113, "STREAM.CREATE.A", {"name": "A", "subjects": ["a.*"]})
            body = {"name": "B", "subjects": ["b.*"], "max_bytes": 2048}
            await answers.ask(streams, 10122, "STREAM.CREATE.B", body)
        async with as_user(server, "none") as streams:
            await answers.ask(streams, 10039, "STREAM.INFO.A", None)
    assert answers.wrong == [], "\n".join(answers.wrong)
    print(sorted(answers.provoked))
