"""Routes that decide by the content of messages, and change what they send, on fake brokers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.routing.core.source import SubjectSource
from router_trio.routing.delivery import Delivery
from router_trio.testing import FakeBroker
from tests.support.compiled import looks_inside
from tests.support.eventually import eventually
from tests.support.recorder import Recorder
from tests.support.world import World, all_acked, core, fill, one_broker, stream, to, two_brokers, world

CLASSES = [
    to("high") | {"when": 'headers["class"] == "high"'},
    to("even") | {"when": "body.n % 2 == 0"},
    to("rest"),
]


def publish(w: World, subject: str, value: Any = None, payload: bytes = b"", grade: str = "") -> None:
    pairs = [("class", grade)] if grade else []
    w.broker.publish(subject, payload if value is None else json.dumps(value).encode(), pairs)


def ledger(w: World) -> dict[str, int]:
    """Return the fates of messages of the first route; check that none is in hand and that all add up."""
    route = w.route
    assert route.in_hand == 0
    assert route.received_in_all == sum(route.settled.values())
    return {fate: count for fate, count in route.settled.items() if count}


async def settled(w: World, count: int) -> None:
    await eventually(lambda: w.route.received >= count and w.route.in_hand == 0, 60)


# --- which messages, and where they go -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["core", "stream"])
async def test_a_route_takes_messages_that_meet_its_condition(kind: str, autojump_clock: MockClock) -> None:
    brokers = one_broker()
    route = core("in.*", "out.x") if kind == "core" else stream("IN", "out.x")
    async with world([route | {"when": "body.n > 3"}], brokers=brokers) as w:
        for number in range(8):
            publish(w, "in.x", {"n": number})
        await settled(w, 8)
        assert [json.loads(one) for one in w.payloads("OUT")] == [{"n": n} for n in range(4, 8)]
        assert ledger(w) == {"routed": 4, "filtered": 4}
        assert w.route.filtered == {"when": 4}
        assert not +w.route.failed


async def test_a_message_is_sent_to_the_first_destination_that_matches(autojump_clock: MockClock) -> None:
    async with world([core("in", *CLASSES) | {"strategy": "first_match"}]) as w:
        for number in range(10):
            publish(w, "in", {"n": number}, grade="high" if number % 5 == 0 else "low")
        await settled(w, 10)
        assert Counter(w.subjects()) == {"high": 2, "even": 4, "rest": 4}
        assert ledger(w) == {"routed": 10}


async def test_a_message_is_sent_to_all_destinations_that_match_and_filtered_if_none_does(
    autojump_clock: MockClock,
) -> None:
    route = core("in", *CLASSES[:2])
    async with world([route]) as w:
        for number in range(10):
            publish(w, "in", {"n": number}, grade="high" if number % 5 == 0 else "low")
        await settled(w, 10)
        assert Counter(w.subjects()) == {"high": 2, "even": 5}
        assert ledger(w) == {"routed": 6, "filtered": 4}
        assert w.route.filtered == {"unmatched": 4}


async def test_weights_are_exact_in_every_window(autojump_clock: MockClock) -> None:
    places = [to(subject) | {"weight": weight} for subject, weight in (("a", 1), ("b", 2), ("c", 7))]
    async with world([core("in", *places) | {"strategy": "weighted"}]) as w:
        for number in range(60):
            publish(w, "in", payload=b"%d" % number)
            if number % 7 == 0:
                await trio.sleep(0.01)
        await settled(w, 60)
        order = {int(message.payload): message.subject for message in w.broker.published}
        for first in range(51):
            window = Counter(order[number] for number in range(first, first + 10))
            assert window == {"a": 1, "b": 2, "c": 7}


async def test_messages_of_one_key_are_sent_to_one_destination_in_order(autojump_clock: MockClock) -> None:
    route = core("in", "a", "b", "c") | {"strategy": "sticky", "key": "body.k"}
    async with world([route]) as w:
        for number in range(90):
            publish(w, "in", {"k": number % 9, "n": number})
        await settled(w, 90)
        seen: dict[int, set[str]] = {}
        last: dict[int, int] = {}
        for message in w.broker.published:
            value = json.loads(message.payload)
            seen.setdefault(value["k"], set()).add(message.subject)
            assert value["n"] > last.get(value["k"], -1)
            last[value["k"]] = value["n"]
        assert all(len(places) == 1 for places in seen.values())
        assert len({place for places in seen.values() for place in places}) > 1


async def test_the_next_destination_is_used_while_the_first_is_down(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    route = core("in", to("out", "edge"), to("out"), connection="main") | {"strategy": "fallback"}
    async with world([route], brokers=brokers) as w:
        publish(w, "in", payload=b"1")
        await settled(w, 1)
        await w.lose("edge")
        publish(w, "in", payload=b"2")
        await settled(w, 2)
        await w.find("edge")
        publish(w, "in", payload=b"3")
        await settled(w, 3)
        assert [message.payload for message in w.brokers["edge"].published] == [b"1", b"3"]
        assert [message.payload for message in w.broker.published] == [b"2"]
        assert ledger(w) == {"routed": 3}


async def test_a_route_from_a_stream_falls_back_while_its_first_destination_is_down(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("HERE", ["here.>"])
    places = [to("out.x", "edge", jetstream=True), to("here.x", jetstream=True)]
    route = stream("IN", *places, connection="main") | {"strategy": "fallback"}
    async with world([route], brokers=brokers) as w:
        await w.lose("edge")
        fill(w.broker, 5)
        await settled(w, 5)
        await w.find("edge")
        fill(w.broker, 5, first=5)
        await settled(w, 10)
        assert w.payloads("HERE") == [b"%d" % n for n in range(5)]
        assert w.payloads("OUT", "edge") == [b"%d" % n for n in range(5, 10)]


async def test_a_mirror_gets_its_share_and_its_failures_fail_no_message(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    route = core("in", to("out"), to("shadow", "edge") | {"mirror": 0.25}, connection="main")
    async with world([route], brokers=brokers) as w:
        for number in range(40):
            publish(w, "in", payload=b"%d" % number)
        await settled(w, 40)
        await eventually(lambda: len(w.brokers["edge"].published) == 10)
        brokers["edge"].deny_publish("shadow")
        for number in range(40, 80):
            publish(w, "in", payload=b"%d" % number)
        await settled(w, 80)
        await eventually(lambda: sum(w.route.mirror_failed.values()) == 10)
        assert len(w.broker.published) == 80
        assert ledger(w) == {"routed": 80}
        assert not +w.route.failed


async def test_a_mirror_that_is_down_holds_up_no_message(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("HERE", ["here.>"])
    places = [to("here.x", jetstream=True), to("out.x", "edge", jetstream=True) | {"mirror": 1.0}]
    async with world([stream("IN", *places, connection="main")], brokers=brokers) as w:
        await w.lose("edge")
        fill(w.broker, 10)
        await settled(w, 10)
        assert w.payloads("HERE") == [b"%d" % n for n in range(10)]
        await w.find("edge")
        await eventually(lambda: len(w.payloads("OUT", "edge")) == 10, 60)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["core", "stream"])
async def test_an_expression_without_a_value_fails_only_that_message(kind: str, autojump_clock: MockClock) -> None:
    brokers = one_broker()
    route = stream("IN", "out.x", retry={"initial": "10s"}) if kind == "stream" else core("in.*", "out.x")
    async with world([route | {"when": "body.n >= 0"}], brokers=brokers) as w:
        for payload in (b'{"n": 1}', b"no json", b"{}", b'{"n": "1"}', b'{"n": 2}'):
            publish(w, "in.x", payload=payload)
        await eventually(lambda: w.route.failed["expression"] == 3 and len(w.payloads("OUT")) == 2)
        assert w.payloads("OUT") == [b'{"n": 1}', b'{"n": 2}']
        if kind == "core":
            assert ledger(w) == {"routed": 2, "lost": 3}


async def test_a_message_keeps_its_destinations_while_a_copy_of_it_is_stored(autojump_clock: MockClock) -> None:
    """A copy is stored, another refused for now. The redelivery completes the message, and is sent nowhere else."""
    brokers = two_brokers()
    brokers["main"].add_stream("HERE", ["here.>"])
    places = [
        to("here.x", jetstream=True) | {"when": "deliveries == 1"},
        to("out.x", "edge", jetstream=True),
        to("shadow") | {"mirror": 1.0},
    ]
    route = stream("IN", *places, connection="main", retry={"initial": "1s"}) | {"when": "deliveries == 1"}
    async with world([route], brokers=brokers) as w:
        brokers["edge"].deny_publish("out.x")
        fill(w.broker, 3)
        await eventually(lambda: len(w.payloads("HERE")) >= 1 and +w.route.failed != {})
        brokers["edge"].allow_publish("out.x")
        await all_acked(w, 3)
        assert w.payloads("OUT", "edge") == [b"0", b"1", b"2"]
        assert w.payloads("HERE") == [b"0", b"1", b"2"]
        assert sorted(one.payload for one in w.broker.published if one.subject == "shadow") == [b"0", b"1", b"2"]


# --- transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["core", "stream"])
async def test_a_copy_is_changed_by_its_expressions(kind: str, autojump_clock: MockClock) -> None:
    brokers = one_broker()
    changed = {
        "payload": '{"id": body.id, "total": double(body.total) * 100.0}',
        "headers": {"set": {"X-Region": "body.region"}, "remove": ["X-Internal"]},
    }
    one = to("out.x", jetstream=kind == "stream") | changed
    route = stream("IN", one) if kind == "stream" else core("in.*", one)
    async with world([route], brokers=brokers) as w:
        w.broker.publish(
            "in.x",
            b'{"total": 1.5, "id": "7", "region": "eu"}',
            [("X-Internal", "1"), ("Kept", "yes"), ("X-Region", "us")],
        )
        await settled(w, 1)
        (sent,) = w.broker.messages("OUT")
        assert sent.payload == b'{"id":"7","total":150.0}'
        assert sent.headers["X-Region"] == "eu"
        assert sent.headers["Kept"] == "yes"
        assert "X-Internal" not in sent.headers
        assert ledger(w) == {"routed": 1}


@pytest.mark.parametrize("changed", [{"payload": "payload"}, {"headers": {"set": {"X-Copy": "string(payload)"}}}])
@pytest.mark.parametrize("kind", ["core", "stream"])
async def test_a_result_that_the_server_does_not_accept_fails_as_too_large(
    kind: str, changed: dict[str, Any], autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    brokers["edge"] = FakeBroker(max_payload=500)
    brokers["edge"].add_stream("OUT", ["out.>"])
    one = to("out.x", "edge", jetstream=kind == "stream") | changed
    retry = {"initial": "10s"}
    route = stream("IN", one, connection="main", retry=retry) if kind == "stream" else core("in.*", one)
    async with world([route | {"from": route["from"] | {"connection": "main"}}], brokers=brokers) as w:
        for size in (10, 501, 20):
            publish(w, "in.x", payload=b"x" * size)
        await eventually(lambda: w.route.failed["too_large"] == 1 and len(w.payloads("OUT", "edge")) == 2)
        assert [len(payload) for payload in w.payloads("OUT", "edge")] == [10, 20]
        assert +w.route.failed == {"too_large": 1}


async def test_a_time_to_live_is_set_on_stored_copies(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([core("in.*", to("out.x", jetstream=True) | {"ttl": "1h"})], brokers=brokers) as w:
        publish(w, "in.x", payload=b"1")
        await settled(w, 1)
        (sent,) = w.broker.messages("OUT")
        assert sent.headers["Nats-TTL"] == "3600s"


async def test_conditions_are_evaluated_on_the_answers_of_the_handler(autojump_clock: MockClock) -> None:
    places = [to("zero") | {"when": "body.part == 0"}, to("two") | {"when": "body.part == 2", "payload": "body.n"}]
    route = core("in", *places) | {"strategy": "first_match", "when": "body.n != 2"}
    handler = {"handler": f"{__name__}:in_three_parts"}
    async with world([route | handler]) as w:
        for number in (1, 2, 3):
            publish(w, "in", {"n": number})
        await settled(w, 3)
        assert [(one.subject, one.payload) for one in w.broker.published] == [
            ("zero", b'{"n": 1, "part": 0}'),
            ("two", b"1"),
            ("zero", b'{"n": 3, "part": 0}'),
            ("two", b"3"),
        ]
        assert w.route.filtered == {"when": 1}
        assert ledger(w) == {"routed": 2, "filtered": 1}


async def in_three_parts(message: Message) -> list[Message]:
    value = json.loads(message.payload)
    return [message.replace(payload=json.dumps({**value, "part": part}).encode()) for part in range(3)]


@looks_inside
@pytest.mark.parametrize("schema", [None, '{"properties": {"n": {"maximum": 14}}}'])
@pytest.mark.parametrize("strategy", ["first_match", "all", "weighted"])
async def test_a_batch_is_sent_where_its_messages_would_be_sent_one_by_one(
    strategy: str, schema: str | None, autojump_clock: MockClock, tmp_path: Path
) -> None:
    file = tmp_path / "n.schema.json"
    file.write_text(schema or "true", encoding="utf-8")
    places = [one if strategy != "weighted" else {k: v for k, v in one.items() if k != "when"} for one in CLASSES]
    seen: list[list[tuple[str, bytes]]] = []
    counts: list[Any] = []
    for together in (True, False):
        decisions = {"strategy": strategy, "when": "body.n != 5", "schema": None if schema is None else str(file)}
        async with world([core("in", *places) | decisions]) as w:
            (source,) = (one for one in w.live.connections["main"]._sources if isinstance(one, SubjectSource))
            route = cast(Any, source.deliver).__self__
            recorder = Recorder()
            async with w.broker.connect("nats://fake:4222", b"_INBOX.x", recorder) as link:
                await link.subscribe("in", recorder)
                for number in range(20):
                    publish(w, "in", {"n": number}, grade="high" if number % 4 == 0 else "low")
                publish(w, "in", payload=b"no json")
                await recorder.until_delivered(21)
            raws = recorder.messages
            await settled(w, 21)
            before = len(w.broker.published)
            if together:
                route._forwarding._forward_by_content(trio.current_time(), raws)
            else:
                for raw in raws:
                    route.routing.forward(Delivery(w.route, raw, trio.current_time()))
            w.route.received += 21
            await settled(w, 42)
            seen.append(sorted((one.subject, one.payload) for one in w.broker.published[before:]))
            counts.append((dict(w.route.filtered), dict(w.route.failed), w.route.settled))
    assert seen[0] == seen[1]
    assert counts[0] == counts[1]
