"""The demo's routes, and the traffic that they get.

Every message carries a number, so that afterwards each can be looked for. Core subjects that routes send to are kept
by streams: the server itself is the witness of what arrived, and it outlives its own restart.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from router_trio import Live, Message, PublishError, Settings

STREAMS = {
    "ORDERS": ["orders.*"],
    "ARCHIVE": ["archive.*"],
    "READINGS": ["eu.readings.*"],
    "AUDIT": ["audit.*"],
}

REGIONS = ("africa", "america", "asia", "europe")
SENSORS = ("door", "gate", "roof")
ROUND = 0.02
"""Seconds between two rounds; a round is one order a region, one reading a sensor and one payment."""
ACK_WITHIN = 60.0
"""Seconds that an order may wait for its ack: longer than the outage by far."""
CANCELLED_EVERY = 5
"""Of so many payments one is cancelled, and the handler filters it out."""


def demo_settings(url: str) -> Settings:
    """The settings of the demo's router; what a file would say, in code."""
    return Settings(
        # Only a demo that is interrupted has something to drain, and its server may never come back.
        router={"name": "demo", "shutdown_timeout": "2s"},
        telemetry={"listen": "127.0.0.1:0"},
        connections={
            "main": {
                "servers": [url],
                "reconnect_delay": "100ms",
                "max_reconnect_delay": "500ms",
                "max_pending_operations": 100_000,
                "on_pending_full": "block",
            }
        },
        routes=[
            {
                "name": "orders",
                "from": {"stream": "ORDERS", "durable": "demo", "filter": "orders.*"},
                "to": [{"subject": "archive.{{wildcard(1)}}", "jetstream": True}],
            },
            {
                "name": "readings",
                "from": {"subject": "readings.*"},
                "to": [{"subject": "eu.readings.{{wildcard(1)}}"}],
            },
            {
                "name": "payments",
                "from": {"subject": "payments.*"},
                "to": [{"subject": "audit.{{wildcard(1)}}"}],
                "handler": f"{__name__}:audit",
            },
        ],
    )


async def audit(message: Message) -> Message | None:
    """The handler of the route `payments`: leaves out what was cancelled, and marks the rest."""
    payment = json.loads(message.payload)
    if payment["cancelled"]:
        return None
    return message.replace(payload=json.dumps(payment | {"audited": True}).encode())


@dataclass
class Traffic:
    """Publishes, and keeps what it published: `expected` by stream, subject and number, fates and refusals by name."""

    expected: dict[str, dict[str, list[int]]] = field(
        default_factory=lambda: {name: {} for name in ("ARCHIVE", "READINGS", "AUDIT")}
    )
    published: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    async def publish_for(self, live: Live, seconds: float) -> None:
        """Publish at a moderate rate, whatever the connection does. Returns when each message has its fate."""
        end = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            number = 0
            while trio.current_time() < end:
                number += 1
                order = {"n": number}
                for region in REGIONS:
                    self._expect("ARCHIVE", f"archive.{region}", number)
                    # Waits for the stream's ack; a task each, so that an outage doesn't stop the others.
                    nursery.start_soon(self._publish, live, f"orders.{region}", order, True)
                for sensor in SENSORS:
                    self._expect("READINGS", f"eu.readings.{sensor}", number)
                    nursery.start_soon(self._publish, live, f"readings.{sensor}", {"n": number}, False)
                cancelled = number % CANCELLED_EVERY == 0
                if not cancelled:
                    self._expect("AUDIT", "audit.card", number)
                nursery.start_soon(self._publish, live, "payments.card", {"n": number, "cancelled": cancelled}, False)
                await trio.sleep(ROUND)

    async def _publish(self, live: Live, subject: str, content: Mapping[str, object], with_ack: bool) -> None:
        payload = json.dumps(content).encode()
        self.published[subject.partition(".")[0]] += 1
        try:
            if with_ack:
                receipt = await live.publish_with_ack(subject, payload, timeout=ACK_WITHIN)
            else:
                receipt = await live.publish(subject, payload)
        except PublishError as error:
            self.refused[error.reason] += 1
            return
        fate = await receipt.settled()
        self.fates[fate.name if fate.reason is None else f"{fate.name} ({fate.reason})"] += 1

    def _expect(self, stream: str, subject: str, number: int) -> None:
        self.expected[stream].setdefault(subject, []).append(number)
