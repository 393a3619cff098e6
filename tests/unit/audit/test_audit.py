"""The audit against the truth: drawn histories of a source and its copies, over streams in memory."""

from __future__ import annotations

import tomllib
from collections import Counter, defaultdict
from random import Random
from typing import Any

import pytest

from router_trio.audit.audit import EVERYTHING, Range
from router_trio.audit.report import Report
from router_trio.protocol import framing
from router_trio.settings import Settings
from tests.unit.audit.fake_streams import SECOND, FakeAudit, FakeStream, block

BEGIN = 1_790_000_000 * SECOND
MINUTE = 60 * SECOND
SETTINGS = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "copy"
from = {{ stream = "SOURCE", durable = "router", filter = {filter}, message_id = "{ids}" }}
{more}
"""
TO = 'to = [ { subject = "sink.{{wildcard(1)}}" } ]\n'
TWO = 'to = [ { subject = "sink.{{wildcard(1)}}" }, { subject = "other.{{wildcard(1)}}" } ]\n'
FAILING = 'to = [ { subject = "sink.{{wildcard(1)}}", payload = "string(100 / body.n)" } ]\n'


def settings(more: str = TO, ids: str = "own", filters: str = '"source.*"') -> Settings:
    return Settings.model_validate(tomllib.loads(SETTINGS.format(more=more, ids=ids, filter=filters)))


class World:
    """A source with messages, and destinations whose copies are added one by one."""

    def __init__(self, more: str = TO, ids: str = "own", *, ahead: int = 0, filters: str = '"source.*"', **sink: Any):
        self.settings = settings(more, ids, filters)
        (self.route,) = self.settings.routes
        self.ids = ids
        self.ahead = ahead
        self.now = BEGIN
        self.source = FakeStream("SOURCE", ["source.*", "noise.*", "more.*"], BEGIN)
        self.streams = {name: FakeStream(name, [f"{name.lower()}.*"], BEGIN, **sink) for name in ("SINK", "OTHER")}
        self.dead = FakeStream("DEAD", ["dead.*"], BEGIN)
        self.copies: list[tuple[int, str, str, bytes, bytes]] = []
        self.plan = FakeAudit(self.settings, self.route, [self.source]).expectations

    def message(self, subject: str, payload: bytes, at: int, message_id: str | None = None) -> int:
        self.now = max(self.now, at)
        headers = b"" if message_id is None else block(("Nats-Msg-Id", message_id))
        return self.source.add(subject, payload, at, headers)

    def copy_id(self, sequence: int, index: int, subject: str, *, at: int | None = None) -> str:
        """Return the id of a copy of the message, or of one that had its sequence before, at another time."""
        message = self.source.messages[sequence]
        given = message.headers.decode().partition("Nats-Msg-Id: ")[2].strip()
        first = f"SOURCE:{sequence}:{message.time_ns if at is None else at}"
        ending = self.plan.destinations[index].copy_id(framing.wire(subject)).decode()
        return (given if given and self.ids == "sender" else first) + ending

    def store(
        self, at: int, subject: str, message_id: str, payload: bytes, stream: str = "", more: bytes = b""
    ) -> None:
        """Have a stream store a message at this time of the source's clock."""
        self.now = max(self.now, at)
        name = stream or subject.partition(".")[0].upper()
        self.copies.append((at, name, subject, block(("Nats-Msg-Id", message_id))[:-2] + more + b"\r\n", payload))

    def dead_letter(self, sequence: int, at: int | None = None) -> None:
        time = self.source.messages[sequence].time_ns if at is None else at
        ids = ("Nats-Msg-Id", f"SOURCE:{sequence}:{time}:dead:{'d' * 16}")
        self.dead.add("dead.1", b"", self.now, block(ids, ("Router-Dead-Letter-Route", "copy")))

    async def audit(self, wanted: Range = EVERYTHING, floor: int | None = None, **durable: Any) -> Report:
        for at, name, subject, headers, payload in sorted(self.copies, key=lambda copy: copy[0]):
            self.streams[name].add(subject, payload, at + self.ahead, headers)
        self.copies.clear()
        self.source.now = self.now
        for stream in self.streams.values():
            stream.now = self.now + self.ahead
            self.expire(stream)
        self.source.consume("router", self.source.newest if floor is None else floor, **durable)
        streams = [self.source, *self.streams.values(), self.dead]
        return await FakeAudit(self.settings, self.route, streams).run(wanted)

    @staticmethod
    def expire(stream: FakeStream) -> None:
        config, messages = stream.config, stream.messages
        by_subject: defaultdict[str, list[int]] = defaultdict(list)
        for sequence in sorted(messages):
            by_subject[messages[sequence].subject].append(sequence)
        for sequences in by_subject.values() if "max_msgs_per_subject" in config else ():
            for old in sequences[: -config["max_msgs_per_subject"]]:
                del messages[old]
        for sequence in [one for one in messages if messages[one].time_ns < stream.now - config.get("max_age", 2**62)]:
            del messages[sequence]
        for sequence in sorted(messages)[: -config.get("max_msgs", 2**62)]:
            del messages[sequence]


def found(report: Report) -> dict[int, str]:
    return {one.sequence: one.stored_class for one in report.findings}


LIMITS: tuple[dict[str, int], ...] = (
    {},
    {},
    {"max_age": 30 * MINUTE},
    {"max_msgs": 60},
    {"max_msgs_per_subject": 1},
    {"max_msgs_per_subject": 5},
)


@pytest.mark.parametrize("seed", range(100))
async def test_a_drawn_history(seed: int) -> None:
    drawn = Random(seed)
    ids = drawn.choice(["own", "own", "sender"])
    strategy = drawn.choice(["all", "all", "all", "weighted"])
    kind = drawn.choice([TO, TWO, FAILING]) if strategy == "all" else TWO
    limits = drawn.choice(LIMITS) if strategy == "all" and kind == TO else {}
    more = f"strategy = '{strategy}'\nwhen = 'body.n % 10 != 3'\nretry = {{ attempts = 1 }}\n"
    more += 'dead_letter = { subject = "dead.1" }\n' + kind
    filters = drawn.choice(['"source.*"', '["source.*", "more.*"]'])
    world = World(more, ids, ahead=drawn.randrange(-5 * MINUTE, 5 * MINUTE), filters=filters, **limits)
    count, at = drawn.randrange(1, 200), BEGIN
    truth: Counter[str] = Counter()
    wrong: dict[int, set[str]] = defaultdict(set)
    absent: list[tuple[int, str, int]] = []
    fates = drawn.choice([[1, 0, 0, 0, 0, 0], [20, 2, 1, 1, 2, 1], [1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]])
    floor = drawn.choice([count, drawn.randrange(count + 1)])
    destinations = ["sink", "other"] if kind == TWO else ["sink"]
    belongs = 0
    for n in range(count):
        at += drawn.choice([MINUTE, SECOND, SECOND, 1_000_000, 1])
        token = drawn.randrange(5)
        area = drawn.choice(["source", "source", "source", "noise", "more"])
        sequence = world.message(f"{area}.{token}", b'{"n": %d}' % n, at, drawn.choice([None, f"order-{n}"]))
        copies = drawn.sample(destinations, 1) if strategy == "weighted" else destinations
        if area == "noise" or (area == "more" and "more" not in filters):
            continue
        belongs += 1
        payload = b'{"n": %d}' % n
        if kind == FAILING:
            payload = b"%d" % (100 // n) if n else b""
        if sequence > floor:
            truth["pending"] += 1
        elif n % 10 == 3:
            truth["filtered"] += 1
            continue
        elif kind == FAILING and n == 0:
            letter = drawn.choice(["its", "another's", "none"])
            truth["dead_lettered" if letter == "its" else "given_up"] += 1
            if letter != "none":
                world.dead_letter(sequence, None if letter == "its" else at - SECOND)
            continue
        drawn_fates = drawn.choices(["there", "missing", "twice", "different", "late", "dead"], fates, k=len(copies))
        if "dead" in drawn_fates:  # there is one dead letter of a message, whichever copies it lacks
            drawn_fates = ["dead" if fate == "missing" else fate for fate in drawn_fates]
        for destination, fate in zip(copies, drawn_fates, strict=True):
            index, subject = destinations.index(destination), f"{destination}.{token}"
            message_id = world.copy_id(sequence, index, subject)
            stored = at + drawn.randrange(1, SECOND // 10)
            if sequence > floor:
                if fate != "missing":
                    world.store(stored, subject, message_id, payload)
                continue
            if fate == "dead":
                world.dead_letter(sequence)
                truth["dead_lettered"] += 1
                continue
            if drawn.random() < 0.1:  # the copy of a message that had this sequence before a restore
                other = world.copy_id(sequence, index, subject, at=at - 77 * MINUTE)
                world.store(stored, subject, other if ids == "own" else f"forged-{n}", payload)
            if fate == "missing":
                absent.append((sequence, subject, at))
                continue
            if fate in ("late", "twice"):
                world.store(stored + drawn.randrange(90 * MINUTE), subject, message_id, payload)
            if fate != "late":
                world.store(stored, subject, message_id, b"?" if fate == "different" else payload)
            if limits:
                absent.append((sequence, subject, at))  # perhaps: see below
            else:
                truth["there" if fate == "late" else fate] += 1
                if fate in ("twice", "different"):
                    wrong[sequence].add(fate)
    world.now += drawn.randrange(20 * SECOND)
    report = await world.audit(floor=floor)
    for sequence, subject, stored in sorted(absent, reverse=True):
        explained = judged(world, limits, sequence, subject, stored, wrong)
        truth[explained] += 1
        if explained in ("missing", "twice", "different"):
            wrong[sequence].add(explained)
    assert +report.counts == truth
    listed: dict[int, set[str]] = defaultdict(set)
    for one in report.findings:
        listed[one.sequence].add(one.stored_class)
    assert listed == wrong
    assert (report.messages, report.gone) == (belongs, 0)
    assert report.clean == (not wrong)


def judged(
    world: World, limits: dict[str, int], sequence: int, subject: str, at: int, wrong: dict[int, set[str]]
) -> str:
    """Return the class of a copy by what the streams have, and why it may not be there."""
    stream = world.streams[subject.partition(".")[0].upper()]
    message_id = world.copy_id(sequence, 1 if subject.startswith("other") else 0, subject).encode()
    stored = [one for one in stream.messages.values() if b": " + message_id + b"\r\n" in one.headers]
    if stored:
        if len(stored) > 1:
            return "twice"
        return "different" if stored[0].payload == b"?" else "there"
    if "max_age" in limits and at < world.now - limits["max_age"] + 10 * SECOND:
        return "expired"
    if "max_msgs" in limits and stream.messages and at < min(m.time_ns for m in stream.messages.values()) - world.ahead:
        return "expired"
    if "max_msgs_per_subject" in limits:
        lost = [one for one, classes in wrong.items() if one > sequence and "missing" in classes]
        token = subject.partition(".")[2]
        newer = sum(world.source.messages[one].subject.endswith(f".{token}") for one in lost)
        newer += sum(
            one.subject == subject and origin(world, one.headers, one.time_ns) > at for one in stream.messages.values()
        )
        return "expired" if newer >= limits["max_msgs_per_subject"] else "missing"
    return "missing"


def origin(world: World, headers: bytes, time_ns: int) -> int:
    """Return when the source stored the message of a copy, or the latest that is possible."""
    parts = headers.decode().partition("Nats-Msg-Id: ")[2].split(":")
    return int(parts[2]) if parts[0] == "SOURCE" and parts[2].isdecimal() else time_ns - world.ahead
