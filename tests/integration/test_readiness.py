"""`/readyz` of a router between real streams, and whether a probe that is sent then gets through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message
from router_trio.connection import destinations
from router_trio.routing.stream.pulling import checks
from router_trio.states import route as state_of_routes
from tests.integration.readiness import Place, Step, deny, place, users
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.server_version import needs_server
from tests.support.settings import core_route, stream_route

CORE = core_route("in.*", "heard.{{wildcard(1)}}")
TO_STREAM = core_route("in.*", "out.{{wildcard(1)}}")
TO_STREAM["to"][0]["jetstream"] = True
STREAM = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destinations, "LOOK_EVERY", 0.3)
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)


async def add_out(at: Place) -> None:
    await at.streams.create_stream("OUT", ["out.*"])


async def delete_out(at: Place) -> None:
    await at.streams.delete_stream("OUT")


async def replace_out(at: Place) -> None:
    await delete_out(at)
    await add_out(at)


async def fill_with_messages(at: Place) -> None:
    messages = (await at.streams.stream_info("OUT"))["state"]["messages"]
    await at.streams.edit_stream("OUT", max_msgs=messages, discard="new")


async def leave_little_room(at: Place) -> None:
    """Leave some bytes: too few for a message."""
    octets = (await at.streams.stream_info("OUT"))["state"]["bytes"]
    await at.streams.edit_stream("OUT", max_bytes=octets + 10, discard="new")


async def fill_with_bytes(at: Place) -> None:
    octets = (await at.streams.stream_info("OUT"))["state"]["bytes"]
    await at.streams.edit_stream("OUT", max_bytes=octets, discard="new")


async def nothing(at: Place) -> None:
    """Do nothing: it repairs itself, or is broken already."""


def edit_out(**changes: Any) -> Step:
    return lambda at: at.streams.edit_stream("OUT", **changes)


PAUSES = needs_server(2, 11, lacks="pause of consumers")


def pause(seconds: float) -> Step:
    return lambda at: at.streams.pause_consumer("IN", "router", seconds)


def headers_only(on: bool) -> Step:
    return lambda at: at.streams.edit_consumer("IN", "router", headers_only=on)


STATES: dict[str, Sequence[object]] = {
    "stream deleted, core source": (TO_STREAM, delete_out, "no stream takes 'out.*'", add_out),
    "stream deleted, stream source": (STREAM, delete_out, "no stream takes 'out.*'", add_out),
    "stream sealed": (TO_STREAM, edit_out(sealed=True), "'OUT' is sealed", replace_out),
    "full of messages": (TO_STREAM, fill_with_messages, "'OUT' is full", edit_out(max_msgs=-1)),
    "full of messages, stream source": (STREAM, fill_with_messages, "'OUT' is full", edit_out(max_msgs=-1)),
    "full of bytes": (STREAM, fill_with_bytes, "'OUT' is full", edit_out(max_bytes=-1)),
    "subject taken": (TO_STREAM, edit_out(subjects=["other"]), "no stream takes", edit_out(subjects=["out.*"])),
    "acks switched off": (STREAM, edit_out(no_ack=True), "no_ack", edit_out(no_ack=False)),
    "consumer paused": pytest.param(STREAM, pause(3600), "is paused", pause(0), marks=PAUSES),
    "consumer edited": (STREAM, headers_only(True), "headers_only", headers_only(False)),
}


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(("route", "break_it", "reason", "mend"), STATES.values(), ids=STATES)
async def test_a_state_that_a_lookup_finds_makes_the_route_unready(
    route: dict[str, Any], break_it: Step, reason: str, mend: Step, tmp_path: Path
) -> None:
    async with place(tmp_path, route) as at:
        assert await at.readyz() == (200, [])
        assert await at.probe()
        await break_it(at)
        await at.until_unready(reason)
        assert not await at.probe(0.5) or "no_ack" in reason
        await mend(at)
        await at.until_ready()
        # The probe has another subject: a refused message is redelivered after its delay, and its own subject waits for
        # that.
        assert await at.probe(subject="in.y")


MET: dict[str, tuple[dict[str, Any], Step, str, Step]] = {
    "too little room": (TO_STREAM, leave_little_room, "limit", edit_out(max_bytes=-1)),
    "too many of a subject": (
        TO_STREAM,
        edit_out(max_msgs_per_subject=1, discard="new", discard_new_per_subject=True, max_msgs=1000),
        "subject_limit",
        edit_out(max_msgs_per_subject=-1, discard_new_per_subject=False),
    ),
    "some subjects taken": (TO_STREAM, edit_out(subjects=["out.a"]), "no_responders", edit_out(subjects=["out.*"])),
    "no permission, core": (CORE, deny("heard.>"), "permission_denied", deny()),
    "no permission": (TO_STREAM, deny("out.>"), "permission_denied", deny()),
    "no permission, stream source": (STREAM, deny("out.>"), "permission_denied", deny()),
}


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(("route", "break_it", "reason", "mend"), MET.values(), ids=MET)
async def test_a_state_that_only_a_publish_finds_makes_the_route_unready(
    route: dict[str, Any], break_it: Step, reason: str, mend: Step, tmp_path: Path
) -> None:
    """No lookup finds it before a message was sent; the repair is found by a message as well."""
    async with place(tmp_path, route) as at:
        assert await at.readyz() == (200, [])
        assert await at.probe()
        await break_it(at)
        assert not await at.probe(0.5)
        await at.until_unready(reason)
        event = at.watch.of("NATS_DESTINATION_NOT_STORED")[0]
        assert (event.route, event.reason) == ("route", reason)
        await mend(at)
        assert await at.probe(subject="in.y")
        await at.until_ready()
        await at.watch.until("NATS_DESTINATION_STORED")


async def test_a_deleted_stream_is_reported_in_good_time(tmp_path: Path) -> None:
    """The intervals are the default ones."""
    async with place(tmp_path, TO_STREAM) as at:
        await delete_out(at)
        await at.until_unready("no stream takes 'out.*'")
        await add_out(at)
        await at.until_ready()


@pytest.mark.parametrize("route", [TO_STREAM, STREAM], ids=["core source", "stream source"])
async def test_a_stream_that_is_missing_at_the_start(route: dict[str, Any], tmp_path: Path) -> None:
    async with place(tmp_path, route, out=False) as at:
        code, reasons = await at.readyz()
        assert code == 503
        assert [one["route"] for one in reasons] == ["route"]
        assert "destination 'out.{{wildcard(1)}}' on connection main: no_stream" in reasons[0]["reason"]
        event = await at.watch.until("NATS_DESTINATION_NOT_STORED", within=1)
        assert (event.route, event.subject, event.reason) == ("route", "out.{{wildcard(1)}}", "no_stream")


async def test_a_server_without_jetstream_makes_the_route_unready(tmp_path: Path) -> None:
    async with place(tmp_path, TO_STREAM, jetstream=False) as at:
        await at.until_unready("JetStream is not enabled")
        assert not await at.probe(0.2)


@pytest.mark.usefixtures("_quick")
async def test_a_deleted_durable_is_recreated(tmp_path: Path) -> None:
    async with place(tmp_path, STREAM) as at:
        assert await at.probe()
        await at.streams.delete_consumer("IN", "router")
        assert await at.probe(10.0)
        await at.until_ready()


@pytest.mark.usefixtures("_quick")
async def test_a_frozen_server_makes_the_route_unready(tmp_path: Path) -> None:
    async with place(tmp_path, CORE) as at:
        at.server.stop()
        await at.until_unready("")
        at.server.cont()
        await at.until_ready()
        assert await at.probe()


@pytest.mark.usefixtures("_quick")
async def test_without_permission_for_lookups_the_router_is_ready(tmp_path: Path) -> None:
    config = users(deny=["$JS.API.STREAM.>"])
    async with place(tmp_path, TO_STREAM, config=config) as at:
        await at.until_ready()
        assert await at.probe(5.0)
        await trio.sleep(1)
        assert await at.readyz() == (200, [])
        assert [event.reason for event in at.watch.of("NATS_DESTINATIONS_UNKNOWN")] == ["permission_denied"]
        await delete_out(at)
        assert not await at.probe(0.5)
        await at.until_unready("no_responders")
        await add_out(at)
        await at.until_ready()
        assert await at.probe()


async def test_nothing_is_stored_without_its_payload_when_a_consumer_is_edited(tmp_path: Path) -> None:
    async with place(tmp_path, STREAM) as at:
        assert await at.probe()
        await headers_only(True)(at)
        assert not await at.probe(0.5)
        await at.until_unready("headers_only")
        await headers_only(False)(at)
        assert await at.probe(20.0)
        assert b"" not in await at.stored()
        assert len(await at.stored()) == 3


@pytest.mark.usefixtures("_quick")
async def test_a_route_that_gets_nothing_new_is_unready_though_its_consumer_cannot_be_checked(tmp_path: Path) -> None:
    mended = False

    async def handler(message: Message) -> Message:
        if message.payload == b"poison" and not mended:
            raise ValueError("every time")
        return message

    async with place(tmp_path, STREAM | {"retry": {"initial": "500ms", "max": "500ms"}}, handler=handler) as at:
        assert await at.probe()
        await at.streams.edit_consumer("IN", "router", max_ack_pending=1)
        await deny("$JS.API.CONSUMER.INFO.>")(at)
        assert await at.probe()
        await trio.sleep(1)
        assert await at.readyz() == (200, []), "nothing waits"
        await at.client.publish("in.x", b"poison")
        await at.client.publish("in.y", b"waits")
        await at.until_unready("the consumer had 1 left")
        assert "the consumer can't be checked" in at.answer[1][0]["reason"]
        mended = True
        await at.until_ready()
        assert await at.probe()
        assert b"waits" in await at.stored()


@pytest.mark.usefixtures("_quick")
async def test_a_purge_leaves_a_route_ready_though_its_consumer_cannot_be_checked(tmp_path: Path) -> None:
    go_on = trio.Event()

    async def handler(message: Message) -> Message:
        await go_on.wait()
        return message

    async def fill(streams: JetStream) -> None:
        for number in range(5):
            await streams.publish("in.x", b"%d" % number)

    route = STREAM | {"from": STREAM["from"] | {"max_in_flight": 2}}
    async with place(tmp_path, route, handler=handler, before=fill) as at:
        await eventually(lambda: at.live.routes[0].in_hand == 2)
        await deny("$JS.API.CONSUMER.INFO.>")(at)
        await at.streams.api("STREAM.PURGE.IN")
        go_on.set()
        for _ in range(20):
            await trio.sleep(0.1)
            assert await at.readyz() == (200, [])
        assert await at.stored() == [b"0", b"1"]
        assert await at.probe()


@pytest.mark.usefixtures("_quick")
async def test_a_handler_that_does_not_return_makes_the_route_unready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_of_routes, "HANDLER_QUIET", 0.5)
    go_on = trio.Event()

    async def handler(message: Message) -> Message:
        if message.payload == b"hang":
            await go_on.wait()
        return message

    for route in (CORE, STREAM):
        go_on = trio.Event()
        async with place(tmp_path, route, handler=handler) as at:
            assert await at.probe()
            await trio.sleep(1)
            assert await at.readyz() == (200, []), "idle"
            await at.client.publish("in.x", b"hang")
            await at.until_unready("its handler has not returned for")
            assert not await at.probe(0.2)
            go_on.set()
            await at.until_ready()
            assert await at.probe()
