"""The routes of the demo, and the messages that are published to them.

Every message has a number, so that each can be found afterwards. Streams also store the core subjects to which routes
send, so that the server itself shows what arrived, even after its restart.
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
"""Seconds between two rounds. A round is one order per region, one reading per sensor and one payment."""
ACK_WITHIN = 60.0
"""Seconds that an order may wait for its PubAck, much longer than the outage."""
CANCELLED_EVERY = 5
"""Every n-th payment is cancelled, and the handler filters it out."""


def demo_settings(url: str) -> Settings:
    """Return the settings of the router of the demo, which a file could contain as well."""
    return Settings(
        # Only an interrupted demo has something to drain, and then its server may be gone for good.
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
    """Filter out cancelled payments, and mark the others. The handler of the route `payments`."""
    payment = json.loads(message.payload)
    if payment["cancelled"]:
        return None
    return message.replace(payload=json.dumps(payment | {"audited": True}).encode())


@dataclass
class Traffic:
    """Publishes messages, and records them: `expected` by stream, subject and number, fates and refusals by name."""

    expected: dict[str, dict[str, list[int]]] = field(
        default_factory=lambda: {name: {} for name in ("ARCHIVE", "READINGS", "AUDIT")}
    )
    published: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    async def publish_for(self, live: Live, seconds: float) -> None:
        """Publish at a moderate rate, connected or not. Return when every message is settled. Can be cancelled."""
        end = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            number = 0
            while trio.current_time() < end:
                number += 1
                order = {"n": number}
                for region in REGIONS:
                    self._expect("ARCHIVE", f"archive.{region}", number)
                    # Waits for the PubAck; one task for each message, so that an outage doesn't stop the others.
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
