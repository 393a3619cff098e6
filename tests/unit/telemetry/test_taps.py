"""Taps: each message of a route is shown with its fate, or counted, and nothing happens to it because of that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, telemetry
from router_trio.message import FENCED
from router_trio.protocol.framing import RawMessage
from router_trio.protocol.headers import Headers, encode
from router_trio.routing.tracing import Attach, MessageTrace, NoTracing, RouteTracing
from router_trio.settings import TelemetrySettings
from router_trio.settings.reload.difference import difference
from router_trio.telemetry.tap.followed import MAX_PER_SECOND, FollowedMessage
from router_trio.telemetry.tap.tap import (
    MAX_HEADERS,
    MAX_PAYLOAD,
    MAX_WAITING,
    MAX_WHERE,
    TapRefused,
    TapRequest,
)
from router_trio.telemetry.tap.taps import Taps
from router_trio.testing import FakeBroker
from router_trio.testing.frames import raw
from tests.support.eventually import eventually
from tests.support.world import World, core, handled, one_broker, stream, to, world

ON = TelemetrySettings(tap=True, tap_payloads=True)
HEADERS_ONLY = TelemetrySettings(tap=True)


@pytest.fixture
def taps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Taps]:
    """Return the taps of the router that is opened next, which may have any."""
    made: list[Taps] = []

    def make(settings: TelemetrySettings) -> Taps:
        made.append(Taps(ON))
        return made[-1]

    monkeypatch.setattr(telemetry, "Taps", make)
    return lambda: made[-1]


async def read_all(found: Taps, w: World, name: str = "tap") -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the messages of a tap that wait, and the numbers of those that it left out."""
    messages: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    while True:
        reading = await found.read(name, w.live, 0.0)
        messages += map(json.loads, reading.lines)
        left_out.update(reading.left_out)
        if not reading.lines and not reading.not_matching:
            return messages, +left_out


# --- each message and its fate ---


@dataclass
class Kind:
    """A kind of route, the messages that it gets, and their fates."""

    fates: dict[str, int]
    route: dict[str, Any] = field(default_factory=dict)
    handler: tuple[Callable[..., Any], dict[str, Any]] | None = None
    bodies: Sequence[bytes] = (b"a", b"b", b"c")
    brokers: Callable[[], dict[str, FakeBroker]] = one_broker


async def shout(message: Message) -> Message | None:
    if message.payload == b"skip":
        return None
    if message.payload == b"bad":
        raise ValueError("bad")
    return message.replace(payload=message.payload.upper())


async def shout_later(message: Message) -> Message | None:
    await trio.sleep(0.01)
    return await shout(message)


def first_fails() -> Callable[[Message], Any]:
    failed = set[bytes]()

    async def handler(message: Message) -> Message:
        if message.payload not in failed:
            failed.add(message.payload)
            raise ValueError("the first time")
        return message

    return handler


MIXED = (b"a", b"skip", b"bad", b"b")
DEAD = {"attempts": 2, "initial": "10ms"}
LETTER = {"subject": "out.dead", "jetstream": True}
SEVERAL = {"routed": 2, "filtered": 1, "lost": 1}

KINDS = {
    "passed on arrival": Kind({"routed": 3}, core("in.*", "to.$1")),
    "to two destinations": Kind({"routed": 3}, core("in.*", "to.$1", to("out.$1", jetstream=True))),
    "by content": Kind({"routed": 1, "filtered": 2}, core("in.*", "to.$1") | {"when": 'payload == b"a"'}),
    "changed": Kind({"routed": 3}, core("in.*", {"subject": "to.$1", "connection": "main", "payload": "payload"})),
    "in a batch of a handler": Kind(SEVERAL, handler=handled(shout, subject="in.*", to="to.$1"), bodies=MIXED),
    "in a handler that waits": Kind(SEVERAL, handler=handled(shout_later, subject="in.*", to="to.$1"), bodies=MIXED),
    "kept and retried": Kind(
        {"routed": 3}, handler=handled(first_fails(), subject="in.*", to="to.$1", retry={"initial": "10ms"})
    ),
    "kept and dead-lettered": Kind(
        {"routed": 2, "filtered": 1, "dead_lettered": 1},
        handler=handled(shout, subject="in.*", to="to.$1", retry=DEAD, dead_letter=LETTER),
        bodies=MIXED,
    ),
    "without a key": Kind({"lost": 3}, handler=handled(shout, subject="in.*", to="to.$1", key="body.customer")),
    "of a stream": Kind({"routed": 3}, stream("IN", "out.$1", filter="in.*")),
    "of a stream, to two destinations": Kind({"routed": 3}, stream("IN", "out.$1", "out.more.$1", filter="in.*")),
    "of a stream, by content": Kind(
        {"routed": 1, "filtered": 2}, stream("IN", "out.$1", filter="in.*") | {"when": 'payload == b"a"'}
    ),
    "of a stream, returned": Kind(
        {"routed": 3, "returned": 3},
        handler=handled(
            first_fails(),
            stream="IN",
            durable="router",
            filter="in.*",
            to=[to("out.$1", jetstream=True)],
        ),
    ),
    "of a stream, given up": Kind(
        {"given_up": 3, "returned": 3},
        stream("IN", "out.$1", filter="in.*", retry=DEAD) | {"key": "body.customer"},
    ),
    "of a stream, dead-lettered": Kind(
        {"dead_lettered": 3, "returned": 3},
        stream("IN", "out.$1", filter="in.*", retry=DEAD, dead_letter=LETTER) | {"when": "body.total > 1"},
    ),
}


@pytest.mark.parametrize("name", KINDS)
async def test_each_message_of_a_route_is_shown_with_its_fate(
    autojump_clock: MockClock, taps: Callable[[], Taps], name: str
) -> None:
    kind = KINDS[name]
    handlers = [] if kind.handler is None else [(kind.handler[0], dict(kind.handler[1]))]
    async with world([kind.route] if kind.route else [], handlers=handlers, brokers=kind.brokers()) as w:
        await eventually(lambda: w.route.unready is None)
        await taps().open("tap", TapRequest("route"), w.live)
        for body in kind.bodies:
            w.broker.publish("in.x", body)
        await eventually(lambda: w.route_ledger()[2] == kind.fates, 60, lambda: w.route_ledger())
        messages, left_out = await read_all(taps(), w)
    assert Counter(one["fate"] for one in messages) == kind.fates
    assert not left_out
    assert {one["subject"] for one in messages} == {"in.x"}
    for one in messages:
        assert ("reason" in one) == (one["fate"] not in ("routed", "filtered")), one
        assert (one["fate"] == "routed") == bool(one["to"]), one
        assert all(copy["fate"] in ("acked", "fenced") for copy in one["to"])
        assert ("sequence" in one) == name.startswith("of a stream")


async def test_messages_are_the_same_with_a_tap_and_without(
    autojump_clock: MockClock, taps: Callable[[], Taps]
) -> None:
    """Also while a tap is opened and closed again: in order, once, and with the same bytes."""
    sent = [b"%d" % number for number in range(60)]
    async with world([core("in.*", "to.$1") | {"hop_limit": 0}]) as w:
        for number, body in enumerate(sent):
            if number == 20:
                await taps().open("tap", TapRequest("route"), w.live)
            if number == 40:
                taps().close("tap")
            w.broker.publish("in.x", body, headers={"A": "b"})
            if number % 3 == 0:
                await trio.testing.wait_all_tasks_blocked()
        await eventually(lambda: w.route_ledger()[2] == {"routed": 60})
        published = w.broker.published
    assert [one.payload for one in published] == sent
    assert {(one.subject, tuple(one.headers.pairs())) for one in published} == {("to.x", (("A", "b"),))}


# --- the rate, and those who do not read ---


async def test_beyond_the_rate_messages_are_counted_by_their_fates(
    autojump_clock: MockClock, taps: Callable[[], Taps]
) -> None:
    handler = handled(shout, subject="in.*", to="to.$1")
    async with world(handlers=[handler]) as w:
        await taps().open("tap", TapRequest("route"), w.live)
        for number in range(3000):
            w.broker.publish("in.x", b"skip" if number % 3 == 0 else b"a")
        await eventually(lambda: w.route_ledger()[2] == {"routed": 2000, "filtered": 1000})
        messages, left_out = await read_all(taps(), w)
    assert MAX_PER_SECOND <= len(messages) < MAX_PER_SECOND + 200, "the clock moves a little"
    assert Counter(one["fate"] for one in messages) + left_out == {"routed": 2000, "filtered": 1000}


async def test_a_tap_that_is_not_read_keeps_a_bounded_number_and_costs_nothing_then(
    autojump_clock: MockClock, taps: Callable[[], Taps]
) -> None:
    async with world([core("in.*", "to.$1")]) as w:
        await taps().open("tap", TapRequest("route"), w.live)
        for _ in range(4):
            for _ in range(MAX_WAITING // 2):
                w.broker.publish("in.x", b"a")
            await trio.sleep(5)
        (tracing,) = taps()._built
        assert tracing.sampled_plain(1000) == []
        messages, left_out = await read_all(taps(), w)
        assert (len(messages), left_out) == (MAX_WAITING, {"routed": MAX_WAITING})
        w.broker.publish("in.x", b"b")
        await trio.sleep(1)
        messages, left_out = await read_all(taps(), w)
        assert (len(messages), left_out) == (1, {})


async def test_large_messages_that_wait_are_bounded_in_bytes(
    autojump_clock: MockClock, taps: Callable[[], Taps]
) -> None:
    async with world([core("in.*", "to.$1")], max_pending_bytes="64MiB") as w:
        await taps().open("tap", TapRequest("route"), w.live)
        for _ in range(12):
            w.broker.publish("in.x", b"x" * 500_000)
            await trio.sleep(0.1)
        messages, left_out = await read_all(taps(), w)
    assert 8 <= len(messages) <= 9
    assert left_out == {"routed": 12 - len(messages)}


# --- which messages ---


async def test_messages_are_chosen_by_fate_and_by_expression(
    autojump_clock: MockClock, taps: Callable[[], Taps]
) -> None:
    handler = handled(shout, stream="IN", durable="router", filter="in.*", to="out.$1")
    async with world(handlers=[handler], brokers=one_broker()) as w:
        await taps().open("all", TapRequest("route", where="sequence > 2 && subject.endsWith('x')"), w.live)
        await taps().open("filtered", TapRequest("route", fate="filtered"), w.live)
        await taps().open("wrong", TapRequest("route", where="body.total > 1"), w.live)
        for body in (b"a", b"skip", b"b", b"skip", b"c"):
            w.broker.publish("in.x", body)
        await eventually(lambda: w.route_ledger()[2] == {"routed": 3, "filtered": 2})
        messages, left_out = await read_all(taps(), w, "all")
        assert sorted(one["sequence"] for one in messages) == [3, 4, 5]
        assert not left_out
        messages, left_out = await read_all(taps(), w, "filtered")
        assert [one["sequence"] for one in messages] == [2, 4]
        assert not left_out
        reading = await taps().read("wrong", w.live, 0.0)
        assert (reading.lines, reading.not_matching, reading.failed) == ([], 5, 5)
        assert "JSON" in (reading.error or "")


@pytest.mark.parametrize(
    "where",
    [
        'headers["X-Api-Key"].startsWith("s3")',
        'headers["X-Api-Key"].size() == 6',
        'headers["Authorization"] > "Basic a" && headers["Authorization"] < "Basic z"',
        'headers["Url"].contains("s3cret")',
        'subject.contains("s3cret")',
        "tokens.exists(one, one.contains('s3cret'))",
        'headers.exists(name, headers[name].contains("3cre"))',
        'int(headers["X-Api-Key"]) > 1',
        'headers["Beyond"] == "s3cret"',
    ],
)
async def test_no_expression_reads_what_is_masked_or_not_shown(
    autojump_clock: MockClock, taps: Callable[[], Taps], where: str
) -> None:
    secret = {"Authorization": "Basic czNjcmV0", "X-Api-Key": "s3cret", "Url": "nats://bob:s3cret@x:4222"}
    many = {f"H-{number}": "x" for number in range(MAX_HEADERS)} | {"Beyond": "s3cret"}
    async with world([core("in.*", "to.$1")]) as w:
        await taps().open("tap", TapRequest("route", where=where), w.live)
        for headers in (secret, many):
            w.broker.publish("in.password=s3cret", b"", headers=headers)
        await eventually(lambda: w.route_ledger()[2] == {"routed": 2})
        reading = await taps().read("tap", w.live, 0.0)
    assert (reading.lines, reading.not_matching) == ([], 2)
    assert "s3cret" not in (reading.error or "")


async def test_an_expression_reads_what_is_shown(autojump_clock: MockClock, taps: Callable[[], Taps]) -> None:
    where = 'headers["region"] == "eu" && headers["X-Api-Key"] == "[redacted]" && size == 3 && tokens[1] == "x"'
    async with world([core("in.*", "to.$1")]) as w:
        await taps().open("tap", TapRequest("route", where=where), w.live)
        w.broker.publish("in.x", b"abc", headers={"region": "eu", "X-Api-Key": "s3cret"})
        await eventually(lambda: w.route_ledger()[2] == {"routed": 1})
        messages, _ = await read_all(taps(), w)
    assert [one["subject"] for one in messages] == ["in.x"]


async def test_a_reload_that_hides_payloads_closes_taps_that_read_them(taps: Callable[[], Taps]) -> None:
    async with world([core("in.*", "to.$1")]) as w:
        await taps().open("body", TapRequest("route", where="body.total > 1"), w.live)
        await taps().open("subject", TapRequest("route", where="subject == 'in.x'"), w.live)
        taps().change(HEADERS_ONLY)
        assert not taps().is_open("body")
        assert taps().is_open("subject")


@pytest.mark.parametrize(
    ("request_", "settings", "code", "text"),
    [
        (TapRequest("route"), TelemetrySettings(), 403, "tap = true"),
        (TapRequest("route", payloads=True), HEADERS_ONLY, 403, "tap_payloads = true"),
        (TapRequest("route", where='body.card == "1"'), HEADERS_ONLY, 403, "reads body"),
        (TapRequest("route", where="payload.size() > 1"), HEADERS_ONLY, 403, "reads payload"),
        (TapRequest("rout"), ON, 404, "did you mean 'route'?"),
        (TapRequest("x\n" * 500), ON, 404, "there is no route"),
        (TapRequest("route", fate="gone"), ON, 400, "the fates are routed, filtered"),
        (TapRequest("route", where="subject +"), ON, 400, "--where"),
        (TapRequest("route", where="subject"), ON, 400, "bool"),
        (TapRequest("route", where="sequence > 1"), ON, 400, "there is no variable 'sequence'"),
        (TapRequest("route", where="true || " * (MAX_WHERE // 8) + "true"), ON, 400, "longer than"),
    ],
)
async def test_messages_that_may_not_be_shown_are_refused_with_the_cure(
    taps: Callable[[], Taps], request_: TapRequest, settings: TelemetrySettings, code: int, text: str
) -> None:
    async with world([core("in.*", "to.$1")]) as w:
        taps().change(settings)
        with pytest.raises(TapRefused, match=r"(?s).*") as refused:
            await taps().open("tap", request_, w.live)
    assert refused.value.code == code
    assert text in str(refused.value)
    assert len(str(refused.value)) < 2 * MAX_WHERE + 500


async def test_a_reload_switches_taps_on_and_off(autojump_clock: MockClock, taps: Callable[[], Taps]) -> None:
    route = core("in.*", "to.$1")
    async with world([route]) as w:
        on = w.configuration(route, telemetry={"tap": True})
        assert difference(w.configuration(route), on).needs_restart == ()
        await w.live.reload(on)
        await taps().open("tap", TapRequest("route"), w.live)
        with pytest.raises(TapRefused, match="tap_payloads"):
            await taps().open("more", TapRequest("route", payloads=True), w.live)
        await w.live.reload(w.configuration(core("in.*", "other.$1"), telemetry={"tap": True}))
        w.broker.publish("in.x", b"a")
        await eventually(lambda: w.route_ledger()[2] == {"routed": 1})
        messages, left_out = await read_all(taps(), w)
        assert ([one["to"][0]["destination"] for one in messages], left_out) == (["other.$1"], {})
        await w.live.reload(w.configuration(core("in.*", "other.$1"), telemetry={"tap": False}))
        assert not taps().is_open("tap")
        assert not any(tracing.followed for tracing in taps()._built)
        assert w.watch.count("ROUTER_RESTART_NEEDED") == 0


async def test_a_tap_on_a_removed_route_is_refused(autojump_clock: MockClock, taps: Callable[[], Taps]) -> None:
    async with world([core("in.*", "to.$1")]) as w:
        await w.live.reload(w.configuration(core("in.*", "to.$1"), telemetry={"tap": True}))
        await taps().open("tap", TapRequest("route"), w.live)
        await w.live.reload(w.configuration(core("in.*", "to.$1", name="other"), telemetry={"tap": True}))
        with pytest.raises(TapRefused, match="removed"):
            await taps().read("tap", w.live, 0.0)


# --- what is shown ---


async def test_headers_with_secrets_are_masked_and_payloads_cut(
    autojump_clock: MockClock, taps: Callable[[], Taps]
) -> None:
    secrets = {
        "Authorization": "Basic czNjcmV0",
        "X-Api-Key": "s3cret",
        "auth-token": "s3cret",
        "Cookie": "id=s3cret",
        "Url": "nats://bob:s3cret@x:4222",
        "Said": "password=s3cret",
        "Plain": "kept\x1b[2J",
    }
    async with world([core("in.*", "to.$1")]) as w:
        await taps().open("tap", TapRequest("route", payloads=True), w.live)
        await taps().open("headers", TapRequest("route"), w.live)
        w.broker.publish("in.x", "ä".encode() * MAX_PAYLOAD, headers=secrets)
        w.broker.publish("in.x", b"\xff\x00")
        w.broker.publish("in.x", b"s3cret", headers={f"H-{number}": "x" * 1000 for number in range(MAX_HEADERS + 3)})
        await eventually(lambda: w.route_ledger()[2] == {"routed": 3})
        (first, second, third), _ = await read_all(taps(), w)
        headers_only, _ = await read_all(taps(), w, "headers")
    assert "s3cret" not in json.dumps(headers_only)
    assert "czNjcmV0" not in json.dumps(first)
    shown = dict(first["headers"])
    assert [name for name, value in shown.items() if value == "[redacted]"] == [
        "Authorization",
        "X-Api-Key",
        "auth-token",
        "Cookie",
    ]
    assert (shown["Url"], shown["Plain"]) == ("nats://x:4222", "kept\\x1b[2J")
    assert "s3cret" not in json.dumps(first)
    assert first["payload"] == "ä" * (MAX_PAYLOAD // 2)
    assert (first["cut"], first["size"]) == (True, 2 * MAX_PAYLOAD)
    assert (second["payload_base64"], "cut" in second) == ("/wA=", False)
    assert (len(third["headers"]), third["more_headers"]) == (MAX_HEADERS, 3)
    assert len(json.dumps(third)) < MAX_HEADERS * 600


# --- nothing is asked while there is no tap ---


class Spans:
    """A `Tracing` that samples each third message, and records for which messages it has begun a trace."""

    possible = True
    active = True
    attach: Attach | None = None

    def __init__(self) -> None:
        self.begun: list[RawMessage] = []

    def sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        return [index for index, one in enumerate(batch) if int(one[4][3:-2]) % 3 == 0]

    def sampled_plain(self, count: int) -> Sequence[int]:
        return range(0, count, 3)

    def sampled_frames(self, frames: Sequence[bytes]) -> Sequence[int]:
        raise AssertionError("routes do not ask for frames")

    def begin(self, route: str, template: str, raw: RawMessage, **more: Any) -> MessageTrace | None:
        self.begun.append(raw)
        return None


class First:
    """A `Follower` with room for the first messages of each batch."""

    def __init__(self, room: int) -> None:
        self._room = room
        self.followed: list[RawMessage] = []

    def room(self, count: int) -> int:
        return min(self._room, count)

    def follow(self, raw: RawMessage, span: MessageTrace | None) -> MessageTrace:
        self.followed.append(raw)
        return FollowedMessage(raw, span, lambda message: None)


def test_without_a_tap_the_spans_are_asked_directly() -> None:
    spans = Spans()
    tracing = RouteTracing("route", spans)
    assert (tracing.active, tracing.sampled, tracing.sampled_plain) == (True, spans.sampled, spans.sampled_plain)
    tracing.follow_by(First(1))
    tracing.follow_by(None)
    assert (tracing.sampled, tracing.sampled_plain, tracing.followed) == (spans.sampled, spans.sampled_plain, False)
    assert not RouteTracing("route", NoTracing()).active


def test_the_same_messages_have_spans_with_a_tap_and_without() -> None:
    batch = [raw(b"in.x", b"", b"", b"%d" % number) for number in range(8)]
    spans, follower = Spans(), First(2)
    tracing = RouteTracing("route", spans)
    tracing.follow_by(follower)
    indexes = tracing.sampled(batch)
    assert indexes == [0, 1, 3, 6]
    for index in indexes:
        trace = tracing.begin("route", "in.*", batch[index])
        assert (trace is None) == (index > 1)
    assert follower.followed == batch[:2]
    assert spans.begun == [batch[0], batch[3], batch[6]]


def test_a_followed_message_is_sent_unchanged_and_settled_once() -> None:
    settled: list[FollowedMessage] = []
    message = FollowedMessage(raw(b"in.x", b"", encode(Headers({"A": "b"})), b"a"), None, settled.append)
    assert message.send("to.$1", "main", 1) is None
    message.sent("to.$1", FENCED)
    assert message.end(0.1) is None
    message.settled("routed", None)
    message.settled("lost", None)
    assert [(one.fate, one.sends) for one in settled] == [("routed", [("to.$1", FENCED)])]
