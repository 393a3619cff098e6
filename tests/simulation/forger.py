"""A client that subscribes to all destinations and forges answers: streams that did not get the router's publishes
answer them.

It publishes with the reply subject of each JetStream publish that it receives as its own reply subject. It publishes to
a subject of a stream that is unrelated to the router: the PubAck or error of that stream reaches the router.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from random import Random
from typing import Any

import trio

from router_trio.protocol.framing import RawMessage, wire
from router_trio.protocol.headers import Headers, encode
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish
from tests.simulation.schedule import Step

SHARE = 0.25
"""Share of the seeds in which some broker has a forger."""

FORGED = "forged answers"

STREAMS = {"EVIL": (["evil.>"], None), "EVIL-FULL": (["evil-full.>"], 0)}
"""Streams unrelated to the router, with their subjects and the number of messages that they have room for."""

WAYS = {
    "stored": ("evil.x", {}),
    "duplicate": ("evil.x", {"Nats-Msg-Id": "forged"}),
    "unexpected": ("evil.x", {"Nats-Expected-Last-Sequence": "1000000"}),
    "full": ("evil-full.x", {}),
    "nothing there": ("nobody.home", {}),
    "asked": ("", {}),
}
"""Subjects to which it publishes, by the effect. The answer of a service is no PubAck."""


def forged(brokers: Sequence[str], horizon: float, random: Random) -> list[Step]:
    """Return when a forger is active, and what it does; often while a sink is missing or full."""
    if random.random() >= SHARE:
        return []
    steps = []
    for broker in brokers:
        if random.random() < 0.3:
            continue
        for _ in range(random.choice((1, 2, 4))):
            at, seconds = random.uniform(0.0, horizon), random.choice((3.0, 10.0, 30.0))
            what: dict[str, Any] = {
                "broker": broker,
                "ways": random.choice((("stored",), ("unexpected",), ("full",), ("asked",), tuple(WAYS))),
                "late": random.choice((0.0, 0.0, 0.001, 0.06, 1.0)),
                "ahead": random.choice((0, 0, 3, 30)),
                "junk": random.random() < 0.3,
            }
            steps.append(Step(round(at, 3), FORGED, seconds, what))
            trouble = random.choice((None, "sink missing", "full stream", "sink made anew"))
            if trouble is not None:
                begins = max(0.0, at + random.uniform(-1.0, seconds / 2))
                lasts = {"sink missing": 12.0, "full stream": 5.0, "sink made anew": 0.0}[trouble]
                more = {"more": random.choice((0, 3))} if trouble == "full stream" else {}
                steps.append(Step(round(begins, 3), trouble, lasts, {"broker": broker, **more}))
    return steps


class Forger:
    """The forger at one broker. It may do several things at a time: `begin` and `end` get the same `what`."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._server = broker._server
        self._listening: dict[int, _Ear] = {}
        for name, (subjects, room) in STREAMS.items():
            broker.add_stream(name, subjects, max_messages=room)

    def begin(self, what: dict[str, Any]) -> None:
        """Subscribe to all publishes, and answer them."""
        ear = self._listening[id(what)] = _Ear(self._broker, what)
        for pattern in ("out.>", "pub.>", "dead.>", "got.>"):
            self._server.subscribe(pattern, None, ear.hear)

    def end(self, what: dict[str, Any]) -> None:
        """Unsubscribe."""
        self._server.remove_receiver(self._listening.pop(id(what)).hear)


class _Ear:
    def __init__(self, broker: FakeBroker, what: dict[str, Any]) -> None:
        self._server = broker._server
        self._what = what
        self._heard = 0

    def hear(self, raw: RawMessage) -> None:
        inbox, _, number = raw[1].rpartition(b".")
        if not number.isdigit():
            return
        self._heard += 1
        now = trio.current_time()
        ways = self._what["ways"]
        subject, headers = WAYS[ways[self._heard % len(ways)]]
        for reply in self._replies(inbox, int(number)):
            publish = Publish(wire(subject) or reply, reply * bool(subject), encode(Headers(headers)), b"forged")
            if self._what["late"]:
                due = now + self._what["late"]
                self._server.losses.schedule(due, partial(self._server.publish, publish, due))
            else:
                self._server.publish(publish, now)

    def _replies(self, inbox: bytes, number: int) -> Iterator[bytes]:
        """Yield the reply subject of the publish, those of the following ones, and a name that is no reply subject."""
        for one in range(number, number + self._what["ahead"] + 1):
            yield b"%b.%d" % (inbox, one)
        if self._what["junk"]:
            yield from (b"%b.x" % inbox, b"%b" % inbox, b"%b.%d.1" % (inbox, number), b"_INBOX.rt-0.%d" % number)
