"""Messages that are delayed, and retried by schedules, by two routes of one router; and what became of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from tests.resilience.chaos.load import Request
from tests.support.raw_jetstream import JetStream

SHORTEST = 1.0
"""The shortest delay, and that of each retry, in seconds."""

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = {servers}
reconnect_delay = "100ms"
max_reconnect_delay = "500ms"
[[routes]]
name = "later"
from = {{ stream = "IN", durable = "router", filter = "in.*", ack_wait = "5s" }}
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}"
delay = "timestamp(body.at)"
schedule_prefix = "later"
[[routes]]
name = "again"
from = {{ stream = "IN", durable = "again", filter = "in.*", ack_wait = "5s" }}
handler = "handlers:fails_until_due"
retry = {{ schedule = {{ stream = "RETRY", prefix = "retry", after = "100ms" }} }}
[[routes.to]]
subject = "retried.{{{{wildcard(1)}}}}"
"""

HANDLER = """
import json
import time
from datetime import datetime

from router_trio import Retry

next_attempt = {{}}
early = set()


def fails_until_due(message):
    now = time.time()
    if now < next_attempt.get(message.sequence, 0.0):
        early.add(message.sequence)
    left = datetime.fromisoformat(json.loads(message.payload)["at"]).timestamp() - now
    if left > 0 or message.sequence not in next_attempt:
        next_attempt[message.sequence] = now + max(left, {shortest})
        raise Retry(after=max(left, {shortest}))
    return message.replace(headers={{"Early": "yes"}} if message.sequence in early else {{}})
"""


def write_configuration(directory: Path, servers: Sequence[str]) -> None:
    """Write `router.toml` and its handler."""
    (directory / "handlers.py").write_text(HANDLER.format(shortest=SHORTEST))
    (directory / "router.toml").write_text(CONFIGURATION.format(servers=json.dumps(list(servers))))


async def create_streams(streams: JetStream, replicas: int = 1) -> None:
    """Create the streams of both routes."""
    settings: dict[str, Any] = {"allow_msg_schedules": True, "num_replicas": replicas}
    await streams.create_stream("IN", ["in.*"], num_replicas=replicas)
    await streams.create_stream("OUT", ["out.*", "later.*"], **settings)
    await streams.create_stream("RETRY", ["retry.>"], **settings)
    await streams.create_stream("RETRIED", ["retried.*"], num_replicas=replicas)


@dataclass
class Delayed:
    """Messages for the stream `IN`, each with the time before which neither route may deliver it."""

    _: KW_ONLY
    shortest: float = SHORTEST
    longest: float
    """The shortest and the longest delay, in seconds."""
    random: Random = field(default_factory=lambda: Random(7))
    due: dict[int, float] = field(default_factory=dict)
    """The time of each message, by its number, in seconds since 1970."""

    def requests(self, numbers: Iterable[int]) -> list[Request]:
        """Return the publishes of messages with these numbers: their delays begin now."""
        return [self._request(number) for number in numbers]

    def _request(self, number: int) -> Request:
        delay = self.random.uniform(self.shortest, self.longest)
        # As the message has it, in whole microseconds.
        at = datetime.fromtimestamp(time.time() + delay, UTC)
        self.due[number] = at.timestamp()
        body = json.dumps({"n": number, "at": at.isoformat()}).encode()
        return f"in.{number % 100}", body, [("Nats-Msg-Id", f"id-{number}")]

    async def all_there(self, streams: JetStream) -> bool:
        """Return True if both routes have delivered everything, and no delay is left."""
        out = (await streams.stream_info("OUT"))["state"]["messages"]
        waiting = await streams.api("STREAM.INFO.OUT", {"subjects_filter": "later.*"})
        retried = (await streams.stream_info("RETRIED"))["state"]["messages"]
        return bool(min(out, retried) >= len(self.due) and not waiting["state"].get("subjects"))

    async def assert_delivered(self, streams: JetStream, *, forgets_acks: bool = False) -> list[str]:
        """Fail if a message was delivered early, twice or never. Return how late each route was, as text.

        Also fail if a message was attempted early, unless the server `forgets_acks`: one that was killed delivers
        messages again whose acks or naks it had not stored yet, although their retries wait.
        """
        attempted_early: list[int] = []
        late = [
            await self._delivered(streams, *route, attempted_early)
            for route in (("OUT", "out."), ("RETRIED", "retried."))
        ]
        assert forgets_acks or attempted_early == []
        return late

    async def _delivered(self, streams: JetStream, stream: str, below: str, attempted_early: list[int]) -> str:
        copies = [one for one in await streams.stream_messages(stream) if one.subject.startswith(below)]
        numbers = [json.loads(one.payload)["n"] for one in copies]
        late = [one.time - self.due[number] for number, one in zip(numbers, copies, strict=True)]
        early = {number: seconds for number, seconds in zip(numbers, late, strict=True) if seconds < 0}
        twice = {number: times for number, times in Counter(numbers).items() if times > 1}
        lost = self.due.keys() - set(numbers)
        assert (early, lost, twice) == ({}, set(), {})
        attempted_early += [number for number, one in zip(numbers, copies, strict=True) if one.header("Early")]
        return f"{stream}: {len(late)} messages, {median(late):.2f} s late (median), {max(late):.2f} s (most)"
