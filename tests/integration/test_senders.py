"""What whoever may only publish can make of it, with real servers: nothing beyond the messages themselves.

A sender's headers don't steer the stream that a route sends to, its subjects don't lead to the server's own, its ids
don't suppress what others send.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router_trio import Message, Router
from router_trio.errors import PublishError
from router_trio.settings import Settings
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, failing_of, settings
from tests.support.watch import Watch, assert_alive, until_stored, watched

KINDS = ("core", "stream", "handler", "handler of a stream")

STEERS = {
    "Nats-Rollup": ("all", {"allow_rollup_hdrs": True}),
    "Nats-TTL": ("1s", {"allow_msg_ttl": True}),
    "Nats-Schedule": ("@at 2035-01-01T00:00:00Z", {"allow_msg_schedules": True, "allow_msg_ttl": True}),
    "Nats-Schedule-Target": ("sink.elsewhere", {"allow_msg_schedules": True, "allow_msg_ttl": True}),
    "Nats-Batch-Id": ("batch", {"allow_atomic": True}),
    "Nats-Batch-Sequence": ("7", {"allow_atomic": True}),
    "Nats-Batch-Commit": ("1", {"allow_atomic": True}),
    "Nats-Incr": ("+1", {}),
    "Nats-Expected-Stream": ("OTHER", {}),
    "Nats-Expected-Last-Sequence": ("99", {}),
    "Nats-Expected-Last-Subject-Sequence": ("99", {}),
    "Nats-Expected-Last-Msg-Id": ("none", {}),
    "Nats-Marker-Reason": ("Purge", {"allow_msg_ttl": True}),
    "Nats-Trace-Dest": ("traced", {}),
    "Nats-Trace-Only": ("true", {}),
    "Nats-Stream-Source": ("OTHER 9 > >", {}),
}


IN_A_STREAM = {
    "Nats-Rollup": "sub",
    "Nats-TTL": "1h",
    "Nats-Expected-Stream": "SOURCE",
    "Nats-Marker-Reason": "Purge",
    "Nats-Trace-Dest": "traced",
    "Nats-Trace-Only": "false",
}
"""Those that a source stream itself stores, with values that it takes."""


def same(message: Message) -> Message:
    """A handler that changes nothing that a stream would look at."""
    return message.replace(payload=message.payload + b"!", headers=message.headers.set("Seen", "1"))


def router(url: str, kind: str, watch: Watch, *, to: dict[str, Any] | None = None, **source: Any) -> Router:
    """A router of one route of this kind, from `in.*` to the stream `SINK`."""
    destination = {"subject": "sink.{{wildcard(1)}}", "jetstream": True} | (to or {})
    failing = failing_of(source)
    if kind in ("stream", "handler of a stream"):
        origin = {"stream": "SOURCE", "durable": "router", "filter": "in.*"} | source
    else:
        origin = {"subject": "in.*"} | source
    if kind.startswith("handler"):
        made = Router(settings(url), observers=[watch])
        subject = origin.pop("subject", None)
        made.route(subject, to=destination, name="route", **failing, **origin)(same)
        return made
    routes = [{"name": "route", "from": origin, "to": [destination], **failing}]
    return Router(settings(url, routes=routes), observers=[watch])


@asynccontextmanager
async def streams(server: NatsServer, kind: str, **sink: Any) -> AsyncIterator[tuple[RawClient, JetStream]]:
    """A client, the stream `SINK` with what others have stored in it, and `SOURCE` if the kind of route needs one."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        if "stream" in kind:
            await stream.create_stream("SOURCE", ["in.*"], **sink)
        await stream.create_stream("SINK", ["sink.>"], **sink)
        await stream.publish_many([("sink.others", b"%d" % number, None) for number in range(3)])
        yield client, stream


async def sunk(stream: JetStream, count: int) -> list[StoredMessage]:
    await until_stored(stream, "SINK", count, within=20)
    return await stream.stream_messages("SINK")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in ("core", "handler") for name in STEERS),
        *((kind, name) for kind in ("stream", "handler of a stream") for name in IN_A_STREAM),
    ],
)
async def test_a_header_of_a_sender_does_not_steer_the_stream(server: NatsServer, name: str, kind: str) -> None:
    value, config = STEERS[name]
    value = IN_A_STREAM[name] if "stream" in kind else value
    watch = Watch()
    async with streams(server, kind, **config) as (client, stream):
        async with watched(router(server.url, kind, watch), watch):
            await client.publish("in.1", b"1", [("Before", "1"), (name, value), ("After", "2")])
            await client.publish("in.2", b"2", [(name, value)])
            stored = await sunk(stream, 5)
        assert [message.payload.rstrip(b"!") for message in stored] == [b"0", b"1", b"2", b"1", b"2"]
        names = [key for message in stored for key, _ in message.headers]
        assert name not in names
        assert {"Before", "After"} <= set(names)
    assert watch.codes.count("ROUTE_MESSAGE_FAILED") == 0


async def test_what_an_atomic_batch_wrote_arrives(server: NatsServer) -> None:
    watch = Watch()
    async with streams(server, "stream", allow_atomic=True) as (client, stream):
        async with watched(router(server.url, "stream", watch), watch):
            for number in (1, 2, 3):
                batch = [("Nats-Batch-Id", "b"), ("Nats-Batch-Sequence", str(number))]
                commit = [("Nats-Batch-Commit", "1")] if number == 3 else []
                await client.request(f"in.{number}", b"batched", [*batch, *commit])
            stored = await sunk(stream, 6)
        assert [message.subject for message in stored[3:]] == ["sink.1", "sink.2", "sink.3"]
    assert watch.codes.count("ROUTE_MESSAGE_FAILED") == 0


async def test_what_a_destination_keeps_does(server: NatsServer) -> None:
    watch = Watch()
    async with streams(server, "core", allow_rollup_hdrs=True, allow_msg_ttl=True) as (client, stream):
        keeps = {"headers": {"keep": ["nats-rollup"]}}
        async with watched(router(server.url, "core", watch, to=keeps), watch):
            await client.publish("in.1", b"all of it", [("Nats-Rollup", "all"), ("Nats-TTL", "1h")])
            await eventually(lambda: watch.router.routes[0].routed["sink.{{wildcard(1)}}"] == 1)
        (stored,) = await stream.stream_messages("SINK")
        assert (stored.payload, stored.header("Nats-TTL")) == (b"all of it", None)


async def test_a_bucket_is_copied_with_its_deletes_and_purges(server: NatsServer) -> None:
    watch = Watch()
    async with streams(server, "core") as (_, stream):
        bucket = {"allow_rollup_hdrs": True, "deny_delete": True, "allow_direct": True, "max_msgs_per_subject": 5}
        await stream.create_stream("KV_prices", ["$KV.prices.>"], **bucket)
        source = {"stream": "KV_prices", "durable": "router", "filter": "$KV.prices.*"}
        route = {"name": "route", "from": source, "to": [{"subject": "sink.{{wildcard(1)}}", "jetstream": True}]}
        async with watched(settings(server.url, routes=[route]), watch):
            pairs = [("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")]
            for key, payload, headers in (("a", b"1", None), ("b", b"2", None), ("a", b"", pairs)):
                await stream.publish(f"$KV.prices.{key}", payload, headers)
            stored = (await sunk(stream, 6))[3:]
        assert [(one.subject, one.header("KV-Operation")) for one in stored] == [
            ("sink.a", None),
            ("sink.b", None),
            ("sink.a", "PURGE"),
        ]


# --- subjects --------------------------------------------------------------------------------------------------------

LEADS_AWAY = {
    "wildcards": ("in.*.*.*.*.*", "$1.$2.$3.$4.$5", "in.$JS.API.STREAM.DELETE.VICTIM"),
    "function": ("in.*.*.*.*.*", "{{wildcard(1)}}.$2.$3.$4.$5", "in.$JS.API.STREAM.PURGE.VICTIM"),
    "rest": ("in.>", ">", "in.$JS.API.STREAM.DELETE.VICTIM"),
    "split": ("in.*", "{{split(1,-)}}", "in.$JS-API-STREAM-DELETE-VICTIM"),
    "cut": ("in.*.*.*.*", "{{splitfromleft(1,3)}}.$2.$3.$4", "in.$JSAPI.STREAM.DELETE.VICTIM"),
    "inbox": ("in.*.*", "$1.$2", "in._INBOX.someone"),
    "system": ("in.*.*", "$1.$2", "in.$SYS.REQ"),
}


def across(url: str, route: dict[str, Any]) -> Settings:
    """A route whose destinations are another connection to the same server."""
    route["from"]["connection"] = "main"
    for destination in route["to"]:
        destination["connection"] = "other"
    connections = {name: {"servers": [url]} for name in ("main", "other")}
    return Settings(telemetry={"listen": ""}, connections=connections, routes=[route])


@pytest.mark.parametrize("kind", ["core", "stream"])
@pytest.mark.parametrize("way", LEADS_AWAY)
async def test_a_subject_of_a_sender_does_not_lead_to_the_server(server: NatsServer, way: str, kind: str) -> None:
    pattern, template, subject = LEADS_AWAY[way]
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("VICTIM", ["victim.*"])
        await stream.publish("victim.1", b"precious")
        source: dict[str, Any] = {"subject": pattern}
        if kind == "stream":
            await stream.create_stream("SOURCE", ["in.>"])
            source = {"stream": "SOURCE", "durable": "router", "filter": pattern}
        watch = Watch()
        heard = await client.subscribe("_INBOX.someone")
        # Given up at once, what fails fails once.
        once = {"retry": {"attempts": 1}} if kind == "stream" else {}
        route = {"name": "route", "from": source, "to": [{"subject": template}], **once}
        async with watched(across(server.url, route), watch):
            await client.publish(subject, b"")
            await watch.until("ROUTE_MESSAGE_FAILED")
            assert dict(watch.router.routes[0].failed) == {"reserved_subject": 1}
        await client.ping()
        assert heard.waiting() == []
        assert (await stream.stream_info("VICTIM"))["state"]["messages"] == 1


async def test_an_inbox_prefix_is_reserved_too(server: NatsServer) -> None:
    watch = Watch()
    async with connect(server.url) as client:
        route = {"name": "route", "from": {"subject": "in.>"}, "to": [{"subject": ">"}]}
        connections = {name: {"servers": [server.url], "inbox_prefix": "team.answers"} for name in ("main", "other")}
        route["from"]["connection"], route["to"][0]["connection"] = "main", "other"  # type: ignore[index]
        config = Settings(telemetry={"listen": ""}, connections=connections, routes=[route])
        heard = await client.subscribe("team.>")
        async with watched(config, watch):
            for subject in ("in.team.answers.x.1", "in.team.answers", "in.team.other"):
                await client.publish(subject, b"")
            await eventually(lambda: watch.router.routes[0].routed[">"] == 1)
            assert dict(watch.router.routes[0].failed) == {"reserved_subject": 2}
        assert [message.subject for message in heard.waiting()] == ["team.other"]


async def test_what_the_configuration_itself_says_is_meant(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("KV_b", ["$KV.b.>"])
        route = core_route("in.*", "$KV.b.{{wildcard(1)}}")
        async with watched(settings(server.url, routes=[route])):
            await client.publish("in.$key", b"1")
            await until_stored(stream, "KV_b", 1)


# --- reply subjects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("carries", "expected"), [(False, ""), (True, "answer.to.me")])
@pytest.mark.parametrize("headers", [None, [("A", "1")]])
async def test_a_reply_subject_crosses_connections_only_on_request(
    core_server: NatsServer, carries: bool, expected: str, headers: Any
) -> None:
    route = {"name": "route", "from": {"subject": "in"}, "to": [{"subject": "out", "reply": carries}]}
    async with connect(core_server.url) as client, watched(across(core_server.url, route)):
        heard = await client.subscribe("out")
        await client.publish("in", b"1", headers, reply="answer.to.me")
        message = await heard.next()
        assert (message.reply or "", message.payload, bool(message.header_block)) == (expected, b"1", bool(headers))


@pytest.mark.parametrize(
    ("reply", "reason"), [("_INBOX.me.1", None), ("$JS.API.STREAM.DELETE.VICTIM", "reserved_subject")]
)
async def test_a_handler_answers_to_inboxes_and_not_to_servers(
    server: NatsServer, reply: str, reason: str | None
) -> None:
    watch = Watch()
    made = Router(settings(server.url), observers=[watch])

    @made.route("in", to="out")
    def answer(message: Message) -> Message:
        assert message.reply is not None
        return message.replace(subject=message.reply, reply=None)

    async with connect(server.url) as client, watched(made, watch):
        stream = JetStream(client)
        await stream.create_stream("VICTIM", ["victim.*"])
        heard = await client.subscribe("_INBOX.me.>")
        await client.publish("in", b"", reply=reply)
        if reason is None:
            assert (await heard.next()).subject == reply
        else:
            await watch.until("ROUTE_MESSAGE_FAILED")
            assert dict(watch.router.routes[0].failed) == {reason: 1}
        assert (await stream.stream_info("VICTIM"))["config"]["name"] == "VICTIM"


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_id", [None, "own"])
async def test_the_id_of_a_sender_does_not_suppress_what_comes_from_a_stream(
    server: NatsServer, message_id: str | None
) -> None:
    watch = Watch()
    source: dict[str, Any] = {} if message_id is None else {"message_id": message_id}
    async with streams(server, "stream", duplicate_window=60_000_000_000) as (_, stream):
        # Ids that a publisher of another subject has used, within the window of the sink but not of the source.
        await stream.publish("sink.others", b"x", [("Nats-Msg-Id", "7")])
        async with watched(router(server.url, "stream", watch, **source), watch):
            await stream.publish("in.1", b"1", [("Nats-Msg-Id", "7")])
            stored = await sunk(stream, 5)
        assert stored[-1].payload == b"1"


async def test_two_teams_that_send_one_message_to_two_subjects_store_both(server: NatsServer) -> None:
    async with streams(server, "stream") as (_, stream):
        configs = []
        for team in ("a", "b"):
            source = {"stream": "SOURCE", "durable": team, "filter": "in.*"}
            destination = {"subject": f"sink.{team}", "jetstream": True}
            configs.append(settings(server.url, routes=[{"name": "copy", "from": source, "to": [destination]}]))
        async with watched(configs[0]), watched(configs[1]):
            await stream.publish_many([("in.1", b"%d" % n, [("Nats-Msg-Id", f"id-{n}")]) for n in range(100)])
            stored = await sunk(stream, 203)
        for team in ("a", "b"):
            assert [int(one.payload) for one in stored if one.subject == f"sink.{team}"] == list(range(100))


# --- control lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("headers", [None, [("A", "1")]])
async def test_a_subject_too_long_for_the_server_fails_and_nothing_else(
    server: NatsServer, kind: str, headers: Any
) -> None:
    watch = Watch()
    async with streams(server, kind) as (client, stream):
        long = {"subject": "sink." + "y" * 120 + ".{{wildcard(1)}}"}
        source: dict[str, Any] = {"retry": {"attempts": 1}} if "stream" in kind else {}
        made = router(server.url, kind, watch, to=long, **source)
        async with watched(made, watch):
            await client.publish("in." + "x" * 3700, b"1", headers)
            await client.publish("in." + "x" * 4000, b"2", headers)
            await client.publish("in.3", b"3", headers)
            stored = await sunk(stream, 5)
            assert [message.payload.rstrip(b"!") for message in stored[3:]] == [b"1", b"3"]
            await eventually(lambda: dict(watch.router.routes[0].failed) == {"too_large": 1})
            assert watch.router.connections["main"].state.lost == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_what_ends_every_link_is_set_aside(tmp_path: Path, kind: str) -> None:
    """A server whose limit is lower than usual: no client is told of it, and the connection ends."""
    watch = Watch()
    async with (
        nats_server(tmp_path, config="max_control_line: 512") as server,
        streams(server, kind) as (client, stream),
    ):
        long = {"subject": "sink." + "y" * 300 + ".{{wildcard(1)}}"}
        source = {"retry": {"initial": "100ms"}, "ack_wait": "1s"} if "stream" in kind else {}
        async with watched(router(server.url, kind, watch, to=long, **source), watch):
            for number in range(11):
                await client.publish("in." + "x" * (300 if number == 10 else 1), b"%d" % number)
            await eventually(lambda: watch.router.routes[0].failed["poison"] > 0)
            await assert_alive(watch.router)
            for number in range(11, 20):
                await client.publish("in.x", b"%d" % number)
            stored = await sunk(stream, 22)
            numbers = [number for number in range(20) if number != 10]
            assert [int(message.payload.rstrip(b"!")) for message in stored[3:]] == numbers
            failed = watch.router.routes[0].failed
            if "stream" in kind:
                await eventually(lambda: failed["poison"] > 3)
            assert set(failed) == {"poison"}
            assert watch.router.connections["main"].state.lost <= 6, "and it ends no link when it is delivered again"


@pytest.mark.parametrize("with_ack", [False, True])
async def test_a_program_is_told_that_a_subject_is_too_long(server: NatsServer, with_ack: bool) -> None:
    async with connect(server.url) as client, watched(settings(server.url)) as watch:
        await JetStream(client).create_stream("SINK", ["sink.>"])
        publish = watch.router.publish_with_ack if with_ack else watch.router.publish
        with pytest.raises(PublishError, match="max_control_line") as refused:
            await publish("sink." + "x" * 4092, b"")
        assert refused.value.reason == "too_large"
        await publish("sink." + "x" * 4000, b"1")
        await until_stored(JetStream(client), "SINK", 1)
        assert watch.router.connections["main"].state.lost == 0


@pytest.mark.parametrize("size", [4095, 4096])
async def test_the_longest_control_line_that_a_server_takes_passes(core_server: NatsServer, size: int) -> None:
    async with connect(core_server.url) as client, watched(settings(core_server.url)) as watch:
        heard = await client.subscribe(">")
        subject = "x" * (size - len(" 5"))
        await (await watch.router.publish(subject, b"12345")).settled()
        assert (await heard.next()).subject == subject
        assert watch.router.connections["main"].state.lost == 0
