"""The audit against the truth: drawn histories of a source and its copies, over streams in memory."""

from __future__ import annotations

import tomllib
from collections import Counter, defaultdict
from random import Random
from typing import Any

import pytest

from router_trio.audit import comparison
from router_trio.audit.audit import EARLIER, EVERYTHING, Range, RangeError
from router_trio.audit.report import Report
from router_trio.protocol import framing
from router_trio.protocol.buckets import time_to_live
from router_trio.settings import Settings
from tests.unit.audit.fake_streams import SECOND, FakeAudit, FakeStream, block, letter_headers, timestamp

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
        message = self.source.messages[sequence]
        lines = letter_headers("copy", "SOURCE", message, message.time_ns if at is None else at)
        self.dead.add("dead.1", message.payload, self.now, lines)

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


@pytest.mark.parametrize("strategy", ["all", "weighted"])
async def test_copies_for_one_subject_are_distinguished(strategy: str) -> None:
    to = 'to = [ { subject = "sink.1", payload = "\'a\'" }, { subject = "sink.1", payload = "\'b\'" } ]\n'
    world = World(f"strategy = '{strategy}'\n" + to)
    for number in range(1, 4):
        world.message("source.1", b"", BEGIN + number)
    assert (world.copy_id(1, 0, "sink.1") == world.copy_id(1, 1, "sink.1")) is (strategy == "weighted")
    for sequence, index in ((1, 0), (1, 1), (2, 0)):
        if strategy == "all" or index == 0:
            world.store(BEGIN + 9, "sink.1", world.copy_id(sequence, index, "sink.1"), b"ab"[index : index + 1])
    report = await world.audit()
    counts = {name: count for name, count in report.counts.items() if count}
    assert counts == ({"there": 3, "missing": 3} if strategy == "all" else {"there": 2, "missing": 1})


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


async def test_copies_whose_subjects_no_stream_takes_are_missing() -> None:
    world = World('to = [ { subject = "nowhere.{{wildcard(1)}}" } ]\n')
    world.message("source.1", b"", BEGIN + SECOND)
    report = await world.audit()
    assert (+report.counts, found(report)) == (Counter(missing=1), {1: "missing"})
    assert report.notes == ["no stream takes nowhere.*, the subjects of main:nowhere.{{wildcard(1)}}"]


# --- what limits can have removed, by clocks that differ ---


@pytest.mark.parametrize("ahead", [-300, 0, 300])
async def test_ages_are_compared_by_the_clock_of_the_sink(ahead: int) -> None:
    world = World(ahead=ahead * SECOND, max_age=10 * MINUTE)
    for minute in range(20):
        world.message("source.1", b"", BEGIN + minute * MINUTE)
    world.now = BEGIN + 20 * MINUTE + 30 * SECOND
    report = await world.audit()
    assert +report.counts == Counter(expired=11, missing=9)


@pytest.mark.parametrize("ahead", [-300, 0, 300])
async def test_a_copy_that_is_newer_than_the_oldest_one_was_not_removed_by_a_limit(ahead: int) -> None:
    world = World(ahead=ahead * SECOND, max_msgs=5)
    for number in range(12):
        sequence = world.message("source.1", b"", BEGIN + number * SECOND)
        if number != 9:
            world.store(BEGIN + number * SECOND + 1000, "sink.1", world.copy_id(sequence, 0, "sink.1"), b"")
    report = await world.audit()
    assert (+report.counts, found(report)) == (Counter(there=5, expired=6, missing=1), {10: "missing"})


@pytest.mark.parametrize("clockless", ["SOURCE", "SINK"])
async def test_servers_that_do_not_report_their_time(clockless: str) -> None:
    world = World("retry = { attempts = 1 }\n" + TO, "sender", max_msgs=2)
    for number in range(6):
        sequence = world.message("source.1", b"", BEGIN + number * MINUTE, f"order-{number}")
        world.store(BEGIN + number * MINUTE + 1000, "sink.1", world.copy_id(sequence, 0, "sink.1"), b"")

    async def no_clock() -> None:
        return None

    stream = world.source if clockless == "SOURCE" else world.streams["SINK"]
    stream.clock = no_clock  # type: ignore[method-assign]
    assert +(await world.audit()).counts == Counter(there=2, expired=4)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("10", 10 * SECOND),
        ("1h", 3600 * SECOND),
        ("1h30m", 5400 * SECOND),
        ("1.5s", 1_500_000_000),
        ("200ms", 200_000_000),
        ("never", None),
        ("0", None),
        ("", None),
        ("5 s", None),
        ("9" * 40, None),
        ("-5", None),
    ],
)
def test_a_time_to_live(text: str, nanoseconds: int | None) -> None:
    assert time_to_live(block(("Nats-TTL", text))) == nanoseconds


async def test_a_copy_whose_own_time_to_live_has_passed_is_expired() -> None:
    to = 'to = [ { subject = "sink.{{wildcard(1)}}", headers = { keep = ["Nats-TTL"] } } ]\n'
    world = World(to, allow_msg_ttl=True)
    for number, ttl in enumerate(["60", "2h", "never", "1m30s"]):
        world.source.add("source.1", b"", BEGIN + number, block(("Nats-TTL", ttl)))
    world.now = BEGIN + 10 * MINUTE
    report = await world.audit()
    assert (+report.counts, found(report)) == (Counter(expired=2, missing=2), {2: "missing", 3: "missing"})


async def test_a_rollup_of_everything_has_removed_what_was_before() -> None:
    world = World(allow_rollup_hdrs=True)
    for number in range(3):
        world.message("source.1", b"", BEGIN + number * MINUTE)
    world.store(BEGIN + 90 * SECOND, "sink.9", "", b"", more=b"Nats-Rollup: all\r\n")
    report = await world.audit()
    assert (+report.counts, found(report)) == (Counter(expired=2, missing=1), {3: "missing"})


async def test_lost_values_of_a_key_are_missing_as_far_as_the_stream_would_keep_them() -> None:
    world = World(max_msgs_per_subject=2)
    for number in range(6):
        sequence = world.message("source.1", b"", BEGIN + number * SECOND)
        if number < 2:  # a backup has these: the newer ones are lost
            world.store(BEGIN + number * SECOND + 1000, "sink.1", world.copy_id(sequence, 0, "sink.1"), b"")
    report = await world.audit()
    assert (+report.counts, found(report)) == (
        Counter(there=2, expired=2, missing=2),
        {5: "missing", 6: "missing"},
    )


# --- ranges, and durables that start later ---


async def test_a_range_by_time() -> None:
    world = World()
    for number in range(10):
        world.message("source.1", b"", BEGIN + number * SECOND)
    del world.source.messages[5]
    report = await world.audit(Range(since=BEGIN + 2 * SECOND, until=BEGIN + 6 * SECOND))
    assert (report.first, report.last, report.messages, report.gone) == (3, 7, 4, 1)
    assert sorted(found(report)) == [3, 4, 6, 7]


async def test_gone_sequences_of_a_whole_stream_are_counted_without_reading_it_again() -> None:
    world = World()
    for number in range(10):
        world.message("source.1", b"", BEGIN + number * SECOND)
    for sequence in (1, 2, 5):
        del world.source.messages[sequence]
    assert (await world.audit()).gone == 1  # the first one is now 3
    assert (await world.audit(Range(first=1))).gone == 3


async def test_a_range_that_begins_long_before_the_stream_needs_no_memory_for_what_is_gone() -> None:
    world = World()
    world.source.add("source.1", b"", BEGIN, sequence=10**15)
    report = await world.audit(Range(first=1))
    assert (report.messages, report.gone, +report.counts) == (1, 10**15 - 1, Counter(missing=1))


async def test_a_range_of_too_many_sequences_is_refused() -> None:
    world = World()
    world.source.add("source.1", b"", BEGIN)
    world.source.add("source.1", b"", BEGIN, sequence=10**12)
    with pytest.raises(RangeError, match="sequences are too many for one audit"):
        await world.audit()


async def test_messages_while_a_durable_is_created_for_new_ones_are_not_accused() -> None:
    world = World()
    for number in range(4):
        world.message("source.1", b"", BEGIN + number * SECOND // 2)
    created: dict[str, Any] = {"deliver_policy": "new"}
    world.source.now = world.now = BEGIN + SECOND // 4
    report = await world.audit(**created)
    assert report.first == 2
    assert (+report.counts, found(report)) == (Counter(unknown=2, missing=1), {4: "missing"})


async def test_a_durable_that_starts_at_a_time() -> None:
    world = World()
    for number in range(4):
        world.message("source.1", b"", BEGIN + number * SECOND)
    start: dict[str, Any] = {"deliver_policy": "by_start_time", "opt_start_time": timestamp(BEGIN + 2 * SECOND)}
    report = await world.audit(**start)
    assert (report.first, +report.counts) == (3, Counter(missing=2))
    assert report.notes == [f"durable router starts at message 3: {EARLIER}"]
    report = await world.audit(Range(first=1), **start)
    assert +report.counts == Counter(unknown=2, missing=2)


# --- copies of several messages, and of other routes ---


@pytest.mark.parametrize("seed", range(20))
async def test_ids_that_senders_use_twice(seed: int) -> None:
    drawn = Random(seed)
    world = World(TO, "sender", ahead=drawn.randrange(-5 * MINUTE, 5 * MINUTE))
    truth: Counter[str] = Counter()
    for number in range(100):
        at = BEGIN + number * drawn.choice([1000, SECOND])
        which = drawn.randrange(60)
        sequence = world.message("source.1", b"%d" % which, max(at, world.now), f"order-{which}")
        known = any(copy[3] == block(("Nats-Msg-Id", world.copy_id(sequence, 0, "sink.1"))) for copy in world.copies)
        if not known or drawn.random() < 0.5:  # otherwise the stream took it for a duplicate
            world.store(world.now + 1000, "sink.1", world.copy_id(sequence, 0, "sink.1"), b"%d" % which)
        truth["there"] += 1
    assert +(await world.audit()).counts == truth


async def test_more_repeated_copies_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RECENT_SEQUENCES", 5)
    monkeypatch.setattr(comparison, "MAX_REPEATED", 10)
    world = World()
    for round_ in range(2):
        for number in range(200):
            at = BEGIN + number * SECOND
            sequence = number + 1 if round_ else world.message("source.1", b"", at)
            world.store(at + round_ * MINUTE * 60 + 1, "sink.1", world.copy_id(sequence, 0, "sink.1"), b"")
    assert +(await world.audit()).counts == Counter(twice=200)


async def test_an_audit_that_ends_early_reports_how_far_it_came() -> None:
    world = World()
    for number in range(10):
        world.message("source.1", b"", BEGIN + number * SECOND)
    world.source.consume("router", 10)
    audit = FakeAudit(world.settings, world.route, [world.source, *world.streams.values(), world.dead])
    assert audit.how_far() == "ended before any message was compared"
    await audit.run(EVERYTHING)
    audit._all_compared = False
    audit.compared_to = 7
    assert audit.how_far() == "ended after message 7; continue with --from 8"
