"""Routes with a schema: a body that does not fit fails for good, before the handler, and is quoted nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Router, Settings
from router_trio.cli.explain_message import explain_message
from router_trio.errors import ConfigurationError
from router_trio.protocol.framing import header_block, payload
from router_trio.protocol.headers import decode
from router_trio.routing.policy.retry import policy_for
from router_trio.routing.rehearsal import Arrived, Limits, Rehearsal
from router_trio.routing.route_plans import compile_routes
from router_trio.telemetry.http.status import status
from tests.support.eventually import eventually
from tests.support.settings import settings
from tests.support.watch import Watch
from tests.support.world import World, core, handled, overhearing, stream, to, world
from tests.unit.routing.stream.giving_up import FROM, NAME, brokers, dead

SCHEMA = {
    "type": "object",
    "required": ["id"],
    "properties": {"id": {"type": "integer"}, "card": {"type": "string", "pattern": "^[0-9 ]*$"}},
}
FITS, MISFIT, NO_JSON = b'{"id": 1}', b'{"id": "s3cr3t"}', b"s3cr3t"
DETAIL = "/id must be of type integer, not a string (#/properties/id/type)"


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "order.schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return str(path)


def write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def publish(w: World, *bodies: bytes) -> None:
    for body in bodies:
        w.broker.publish("in.x", body)


async def test_a_core_message_that_does_not_fit_is_lost_with_its_reason(autojump_clock: MockClock, schema: str) -> None:
    async with world([core("in.*", "out.{{wildcard(1)}}") | {"schema": schema}]) as w:
        publish(w, MISFIT, FITS, NO_JSON, FITS)
        await eventually(lambda: sum(w.route.settled.values()) == 4)
        assert [one.payload for one in w.broker.published] == [FITS, FITS]
        assert w.route_ledger() == (4, 0, {"routed": 2, "lost": 2})
        assert dict(w.route.failed) == {"schema": 2}
        assert [event.detail for event in w.watch.of("ROUTE_MESSAGE_FAILED")] == [DETAIL, "the body is not JSON"]


@pytest.mark.parametrize("source", ["stream", "subject"])
@pytest.mark.parametrize("retry", [None, {"attempts": 5}])
@pytest.mark.parametrize("more", [{}, {"key": "body.id"}, {"limit": {"rate": "100/s", "per": "body.id"}}])
async def test_a_message_that_does_not_fit_is_a_dead_letter_after_its_first_attempt(
    autojump_clock: MockClock, schema: str, source: str, retry: dict[str, Any] | None, more: dict[str, Any]
) -> None:
    given = {"stream": "IN", "durable": "router", "filter": "in.*"} if source == "stream" else {"subject": "in.*"}
    route = {"name": "route", "from": {"connection": "main", **given}, "to": [to("out.x", jetstream=True)]}
    route |= {"schema": schema, "dead_letter": FROM["dead_letter"], **more}
    async with world([route | ({} if retry is None else {"retry": retry})], brokers=brokers()) as w:
        publish(w, MISFIT, FITS, NO_JSON)
        await eventually(lambda: sum(w.route.settled.values()) == 3)
        assert w.payloads("OUT") == [FITS]
        assert w.route_ledger() == (3, 0, {"routed": 1, "dead_lettered": 2})
        letters = sorted((one.payload, one.headers[f"{NAME}Detail"]) for one in dead(w))
        assert letters == [(NO_JSON, "the body is not JSON"), (MISFIT, DETAIL)]
        assert {(one.headers[f"{NAME}Reason"], one.headers[f"{NAME}Attempts"]) for one in dead(w)} == {("schema", "1")}


@pytest.mark.parametrize("more", [{}, {"concurrency": 4}, {"thread": True}])
@pytest.mark.parametrize("source", [{"subject": "in.*"}, {"stream": "IN", "durable": "router", "filter": "in.*"}])
async def test_the_handler_gets_only_bodies_that_fit_and_its_answers_are_not_judged(
    autojump_clock: MockClock, schema: str, source: dict[str, Any], more: dict[str, Any]
) -> None:
    called = []

    def handle(message: Message) -> Message:
        called.append(message.payload)
        return message.replace(payload=b"no JSON")

    route = handled(handle, to=to("out.x", jetstream=True), schema=schema, dead_letter=FROM["dead_letter"], **source)
    route[1].update(more)
    async with world(handlers=[route], brokers=brokers()) as w:
        publish(w, MISFIT, FITS)
        await eventually(lambda: sum(w.route.settled.values()) == 2)
        assert called == [FITS]
        assert w.payloads("OUT") == [b"no JSON"]
        assert w.route_ledger() == (2, 0, {"routed": 1, "dead_lettered": 1})


async def test_a_message_that_is_not_of_the_route_is_filtered_and_not_judged(
    autojump_clock: MockClock, schema: str
) -> None:
    routes = [core("in.*", "out.a") | {"schema": schema, "when": "headers['kind'] == 'order'"}]
    async with world(routes) as w:
        w.broker.publish("in.x", NO_JSON, headers={"kind": "other"})
        w.broker.publish("in.x", NO_JSON, headers={"kind": "order"})
        await eventually(lambda: sum(w.route.settled.values()) == 2)
        assert w.route_ledger() == (2, 0, {"filtered": 1, "lost": 1})
        assert dict(w.route.failed) == {"schema": 1}


async def test_a_request_that_does_not_fit_is_answered_with_the_rule(autojump_clock: MockClock, schema: str) -> None:
    route = handled(lambda message: message, subject="calls.*", to=[], respond=True, schema=schema)
    async with world(handlers=[route]) as w, overhearing(w.broker, "_INBOX.asker.>") as heard:
        w.broker.publish("calls.x", FITS, reply="_INBOX.asker.1")
        w.broker.publish("calls.x", MISFIT, reply="_INBOX.asker.2")
        await eventually(lambda: len(heard) == 2)
        assert payload(heard[0]) == FITS
        assert dict(decode(header_block(heard[1])))["Nats-Service-Error"] == f"schema: {DETAIL}"


def test_a_route_with_a_schema_gives_up_messages_so_a_work_queue_needs_dead_letters(schema: str) -> None:
    config = settings("nats://h", routes=[stream("IN", "out", filter="in.*") | {"schema": schema}])
    assert policy_for(config.routes[0], lambda low, high: high).gives_up
    assert not config.routes[0].retries_without_end
    bare = config.routes[0].model_copy(update={"schema_file": None})
    assert not policy_for(bare, lambda low, high: high).gives_up
    assert bare.retries_without_end


@pytest.mark.parametrize("source", ["stream", "subject"])
async def test_a_reload_judges_by_the_changed_file_and_loses_nothing(
    autojump_clock: MockClock, schema: str, source: str
) -> None:
    made = stream("IN", "out.x", filter="in.*") if source == "stream" else core("in.*", to("out.x", jetstream=True))
    route = made | {"schema": schema, "dead_letter": FROM["dead_letter"]}
    async with world([route], brokers=brokers()) as w:
        publish(w, FITS, MISFIT)
        await eventually(lambda: sum(w.route.settled.values()) == 2)
        write(schema, '{"required": ["total"]}')
        publish(w, FITS)
        await eventually(lambda: len(w.payloads("OUT")) == 2)  # not before a reload
        await w.live.reload(w.configuration(route))
        publish(w, FITS, b'{"total": 1}')
        await eventually(lambda: len(dead(w)) == 2 and len(w.payloads("OUT")) == 3)
        assert [one.headers[f"{NAME}Detail"] for one in dead(w)] == [DETAIL, "the body lacks 'total' (#/required)"]
        write(schema, '{"required": "total"}')
        with pytest.raises(ConfigurationError, match="at #/required: must be of type array, not a string"):
            await w.live.reload(w.configuration(route))
        publish(w, b'{"total": 2}')
        await eventually(lambda: len(w.payloads("OUT")) == 4)


HOSTILE = {"properties": {"a": {"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}, "b": {"pattern": "(x+x+)+y"}}}


async def test_a_hostile_pattern_does_not_stop_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "hostile.schema.json"
    path.write_text(json.dumps(HOSTILE), encoding="utf-8")
    longest = 0.0

    async def watch_loop() -> None:
        nonlocal longest
        while True:
            before = trio.current_time()
            await trio.lowlevel.checkpoint()
            longest = max(longest, trio.current_time() - before)

    async with world([core("in.*", "out.a") | {"schema": str(path)}]) as w, trio.open_nursery() as nursery:
        nursery.start_soon(watch_loop)
        for _ in range(20):
            publish(w, json.dumps({"a": "a" * 40_000 + "!", "b": "x" * 40_000}).encode(), b'{"b": "xxy"}')
        await eventually(lambda: sum(w.route.settled.values()) == 40)
        assert w.route_ledger() == (40, 0, {"routed": 20, "lost": 20})
        nursery.cancel_scope.cancel()
    assert longest < 1.0


VALUE, KEY = "4111-1111-s3cr3t", "k3y-0f-a-customer"
SECRETS = [
    {"id": VALUE},
    {"id": 1, "card": VALUE},
    {"id": 1, KEY: VALUE},
    [VALUE],
    VALUE,
    {"id": 1, "list": [VALUE, VALUE]},
    {"id": 1, "named": {KEY: VALUE}},
    {"id": 1, "either": VALUE},
]
STRICT = {
    "type": "object",
    "properties": {
        **SCHEMA["properties"],  # type: ignore[dict-item]
        "list": {"uniqueItems": True},
        "named": {"additionalProperties": {"type": "integer"}},
        "either": {"oneOf": [{"const": "a"}, {"enum": ["b", 1]}, {"maxLength": 2}]},
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize("source", [{"subject": "in.*"}, {"stream": "IN", "durable": "router", "filter": "in.*"}])
async def test_no_value_and_no_key_of_a_body_is_in_a_log_event_page_or_header_of_a_dead_letter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], source: dict[str, Any]
) -> None:
    path = tmp_path / "strict.schema.json"
    path.write_text(json.dumps(STRICT), encoding="utf-8")
    broker, watch = brokers()["main"], Watch()
    configuration = Settings(
        telemetry={"listen": "", "log_format": "json", "log_level": "debug", "handler_errors": "full"},
        connections={"main": {"servers": ["nats://fake"]}},
    )
    router = Router(configuration, observers=[watch], connect=lambda name, _: broker.connect, log=True)
    router.route(to="out.$1", name="strict", schema=path, dead_letter=FROM["dead_letter"], **source)(lambda one: one)
    async with router.open() as live:
        for body in SECRETS:
            broker.publish("in.7", json.dumps(body).encode())
        await eventually(lambda: len(broker.messages("DEAD")) == len(SECRETS))
        page = json.dumps(status(live, 1.0))
    letters = broker.messages("DEAD")
    assert {one.headers[f"{NAME}Reason"] for one in letters} == {"schema"}
    assert len({one.headers[f"{NAME}Detail"] for one in letters}) == len(SECRETS)
    logged = capfd.readouterr().err
    assert "ROUTE_MESSAGE_FAILED" in logged
    shown = [logged, page, repr(watch.events), *(str(list(one.headers.pairs())) for one in letters)]
    for text in shown:
        assert "s3cr3t" not in text
        assert KEY not in text


def test_explain_shows_whether_the_body_fits(schema: str) -> None:
    plans = compile_routes(settings("nats://h", routes=[core("in", "out") | {"schema": schema}]))

    def explained(data: bytes) -> tuple[dict[str, Any], list[str]]:
        found = explain_message(plans, "in", b"", data)
        return found.as_json()["routes"][0], list(found.lines())

    found, lines = explained(FITS)
    assert found["schema"] == {"file": "order.schema.json", "fits": True}
    assert "  schema order.schema.json: the body fits" in lines
    assert len(found["destinations"]) == 1
    found, lines = explained(MISFIT)
    assert found["schema"] == {"file": "order.schema.json", "fits": False}
    assert found["error"] == {"reason": "schema", "detail": DETAIL}
    assert lines[-2:] == ["  schema order.schema.json: the body does not fit", f"  fails: {DETAIL}"]
    found, lines = explained(b"")
    assert found["schema"] == {"file": "order.schema.json", "fits": None}
    assert "  schema order.schema.json: the body must fit it" in lines


async def test_a_rehearsal_judges_bodies(autojump_clock: MockClock, schema: str) -> None:
    config = settings("nats://h", routes=[core("in", "out") | {"schema": schema}])
    rehearsal = Rehearsal(config, config.routes[0], {}, {"main": Limits(2**20, 4096)})
    failed = (await rehearsal.run(Arrived("in", b"", MISFIT, b"id", None))).failed
    assert failed is not None
    assert (failed.reason, failed.detail) == ("schema", DETAIL)
    assert len((await rehearsal.run(Arrived("in", b"", FITS, b"id", None))).copies) == 1
