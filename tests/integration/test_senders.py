"""The power of a client that may only publish, with real servers: it affects nothing beyond its messages.

A sender's headers don't control the destination stream, its subjects don't reach the server's own, its ids don't
suppress messages of others.
"""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import Message, Router
from router_trio.settings import Settings
from tests.integration.senders import router, streams, sunk
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import core_route, settings
from tests.support.watch import Watch, until_stored, watched

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
"""Headers that a source stream itself stores, with values that it accepts."""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in ("core", "handler") for name in STEERS),
        *((kind, name) for kind in ("stream", "handler of a stream") for name in IN_A_STREAM),
    ],
)
async def test_a_header_of_a_sender_does_not_control_the_stream(server: NatsServer, name: str, kind: str) -> None:
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


async def test_messages_of_an_atomic_batch_arrive(server: NatsServer) -> None:
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


async def test_only_headers_that_a_destination_keeps_have_an_effect(server: NatsServer) -> None:
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
    """Return a route whose destinations are another connection to the same server."""
    route["from"]["connection"] = "main"
    for destination in route["to"]:
        destination["connection"] = "other"
    connections = {name: {"servers": [url]} for name in ("main", "other")}
    return Settings(telemetry={"listen": ""}, connections=connections, routes=[route])


@pytest.mark.parametrize("kind", ["core", "stream"])
@pytest.mark.parametrize("way", LEADS_AWAY)
async def test_a_subject_of_a_sender_does_not_reach_the_server(server: NatsServer, way: str, kind: str) -> None:
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
        # Given up at once, so that a failing message fails once. A sender's choice may lead back to the source: that is
        # intended.
        once = {"retry": {"attempts": 1}, "hop_limit": 4} if kind == "stream" else {}
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


async def test_a_reserved_subject_in_the_configuration_itself_is_intended(server: NatsServer) -> None:
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
async def test_a_reply_subject_is_forwarded_to_another_connection_only_on_request(
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
async def test_a_handler_answers_to_inboxes_and_not_to_server_subjects(
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
async def test_the_id_of_a_sender_does_not_suppress_messages_of_a_stream(
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
