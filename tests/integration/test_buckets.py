"""Copies of KV buckets on real servers: each operation arrives as what it is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.audit.find import Finder, connections_for
from router_trio.connection.platform import Platform
from router_trio.nats.command_link import open_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, watched

BUCKET = {
    "allow_rollup_hdrs": True,
    "allow_direct": True,
    "deny_delete": True,
    "discard": "new",
    "max_msgs_per_subject": 5,
}
WITH_TTL = {**BUCKET, "allow_msg_ttl": True, "subject_delete_marker_ttl": 2_000_000_000}
DELETE = [("KV-Operation", "DEL")]
PURGE = [("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")]


@asynccontextmanager
async def two_buckets(server: NatsServer, **config: Any) -> AsyncIterator[JetStream]:
    """Yield a client of a server with the buckets `here` and `there`."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        for name in ("here", "there"):
            await stream.create_stream(f"KV_{name}", [f"$KV.{name}.>"], **(BUCKET | config))
        yield stream


def copying(server: NatsServer, *, to: dict[str, Any] | None = None, **source: Any) -> Settings:
    """Return settings with a route from bucket `here` to bucket `there`."""
    origin = {"bucket": "here", "durable": "copy", **source}
    return settings(server.url, routes=[{"name": "copy", "from": origin, "to": [{"bucket": "there", **(to or {})}]}])


async def values(stream: JetStream, bucket: str) -> dict[str, bytes | None]:
    """Return the newest value of each key that has messages; None if it is deleted."""
    found: dict[str, bytes | None] = {}
    for one in await stream.stream_messages(f"KV_{bucket}"):
        gone = one.header("KV-Operation") or one.header("Nats-Marker-Reason")
        found[one.subject.split(".", 2)[2]] = None if gone else one.payload
    return found


async def of_key(stream: JetStream, key: str) -> list[StoredMessage]:
    """Return the messages of a key in bucket `there`."""
    return [one for one in await stream.stream_messages("KV_there") if one.subject == f"$KV.there.{key}"]


async def until_there(stream: JetStream, expected: dict[str, bytes | None]) -> None:
    """Wait until bucket `there` has these values."""
    found: dict[str, bytes | None] = {}

    async def is_there() -> bool:
        nonlocal found
        found = await values(stream, "there")
        return found == expected

    await eventually(is_there, otherwise=lambda: f"found {found}")


async def test_puts_deletes_and_purges_arrive_as_what_they_are(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        for key, payload, headers in (
            ("a", b"before", None),
            ("b", b"1", None),
            ("b", b"2", None),
            ("c.d", b"3", [("Nats-Rollup", "all"), ("Own", "1")][1:]),
        ):
            await stream.publish(f"$KV.here.{key}", payload, headers)
        watch = Watch()
        async with watched(copying(server), watch):
            await until_there(stream, {"a": b"before", "b": b"2", "c.d": b"3"})
            await stream.publish("$KV.here.a", b"", DELETE)
            await stream.publish("$KV.here.b", b"", PURGE)
            await stream.publish("$KV.here.e", b"5")
            await until_there(stream, {"a": None, "b": None, "c.d": b"3", "e": b"5"})
            assert [one.header("KV-Operation") for one in await of_key(stream, "a")] == [None, "DEL"]
            assert [one.header("KV-Operation") for one in await of_key(stream, "b")] == ["PURGE"]  # no history is left
            assert [one.header("Own") for one in await of_key(stream, "c.d")] == ["1"]
            await stream.publish("$KV.here.b", b"again")
            await until_there(stream, {"a": None, "b": b"again", "c.d": b"3", "e": b"5"})


async def test_a_roll_up_of_the_bucket_removes_no_other_key(server: NatsServer) -> None:
    async with two_buckets(server) as stream, watched(copying(server), Watch()):
        await stream.publish("$KV.here.a", b"1")
        await until_there(stream, {"a": b"1"})
        await stream.publish("$KV.here.b", b"2", [("Nats-Rollup", "all")])
        await until_there(stream, {"a": b"1", "b": b"2"})


@needs_server(2, 11, lacks="markers")
async def test_a_value_expires_in_the_copy_when_it_does_in_the_source(server: NatsServer) -> None:
    async with two_buckets(server, **WITH_TTL) as stream:
        await stream.publish("$KV.here.long", b"1", [("Nats-TTL", "1h")])
        await stream.publish("$KV.here.never", b"1", [("Nats-TTL", "never")])
        await stream.publish("$KV.here.short", b"1", [("Nats-TTL", "2s")])
        async with watched(copying(server), Watch()):
            await until_there(stream, {"long": b"1", "never": b"1", "short": b"1"})
            (long,), (never,) = await of_key(stream, "long"), await of_key(stream, "never")
            assert (long.header("Nats-TTL"), never.header("Nats-TTL")) in [("3600", "never"), ("3599", "never")]
            await until_there(stream, {"long": b"1", "never": b"1", "short": None})
            await eventually(lambda: _is(of_key(stream, "short"), lambda found: len(found) == 1))
            (marker,) = await of_key(stream, "short")
            assert marker.header("Nats-Marker-Reason") == "MaxAge"
            assert marker.header("Nats-TTL") is not None


@needs_server(2, 11, lacks="TTLs")
@pytest.mark.parametrize("ahead", [-600.0, 600.0, 3600.0 * 24])
async def test_the_rest_of_a_ttl_is_computed_by_the_clock_of_its_server(server: NatsServer, ahead: float) -> None:
    """And not by that of the router, by which the value would have expired, or would live too long."""
    platform = Platform(wall_clock=lambda: time.time() + ahead)
    async with two_buckets(server, **WITH_TTL) as stream:
        await stream.publish("$KV.here.before", b"1", [("Nats-TTL", "5m")])
        await trio.sleep(2.0)  # its age
        router = Router(copying(server), platform=platform, log=False)
        async with router.open():
            await until_there(stream, {"before": b"1"})
            await stream.publish("$KV.here.after", b"1", [("Nats-TTL", "5m")])
            await until_there(stream, {"before": b"1", "after": b"1"})
        (before,), (after,) = await of_key(stream, "before"), await of_key(stream, "after")
    assert 285 <= int(str(before.header("Nats-TTL"))) <= 298
    assert after.header("Nats-TTL") in ("5m", "300", "299", "298")


@needs_server(2, 11, lacks="TTLs")
async def test_a_ttl_that_is_no_valid_duration_is_copied_as_it_was_accepted(server: NatsServer) -> None:
    """A server takes any number of seconds, but as a duration at most 292 years. It reads this one as an hour."""
    async with two_buckets(server, **WITH_TTL) as stream:
        await stream.publish("$KV.here.a", b"1", [("Nats-TTL", "18446747674")])
        await stream.publish("$KV.here.a", b"2")
        async with watched(copying(server), Watch()) as watch:
            await until_there(stream, {"a": b"2"})
            assert not watch.of("ROUTE_MESSAGE_FAILED")


async def _is(found: Any, holds: Any) -> bool:
    return bool(holds(await found))


async def test_a_mirror_is_copied(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        await stream.api(
            "STREAM.CREATE.KV_mirror",
            {"name": "KV_mirror", "mirror": {"name": "KV_here"}, "max_msgs_per_subject": 5, "allow_direct": True},
        )
        await stream.publish("$KV.here.eu.a", b"1")
        await stream.publish("$KV.here.us.a", b"2")
        watch = Watch()
        async with watched(copying(server, bucket="mirror", filter="eu.>"), watch):
            await stream.publish("$KV.here.eu.b", b"3")
            await until_there(stream, {"eu.a": b"1", "eu.b": b"3"})
            await stream.publish("$KV.here.eu.a", b"", PURGE)
            await until_there(stream, {"eu.a": None, "eu.b": b"3"})
        assert watch.codes.count("ROUTE_FILTER_OUTSIDE") == 0


async def test_filters_choose_keys_and_a_mapping_renames_them(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        for key in ("eu.a", "us.a", "de.a"):
            await stream.publish(f"$KV.here.{key}", key.encode())
        route = copying(server, filter=["eu.*", "us.*"])
        async with watched(route, Watch()):
            await until_there(stream, {"eu.a": b"eu.a", "us.a": b"us.a"})
        route = copying(server, durable="other", filter="*.a", to={"key": "copy.{{wildcard(1)}}"})
        async with watched(route, Watch()):
            await until_there(
                stream,
                {
                    "eu.a": b"eu.a",
                    "us.a": b"us.a",
                    **{f"copy.{one}": f"{one}.a".encode() for one in ("eu", "us", "de")},
                },
            )


async def test_expressions_and_handlers_see_keys(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        seen: list[str] = []

        def renamed(message: Message) -> Message:
            seen.append(message.subject)
            return message.replace(subject=f"handled.{message.subject}")

        router = Router(settings(server.url))
        router.route(
            bucket="here",
            durable="copy",
            name="copy",
            to={"bucket": "there"},
            when='tokens[0] == "eu" && subject != "eu.b"',
        )(renamed)
        for key in ("eu.a", "eu.b", "us.a"):
            await stream.publish(f"$KV.here.{key}", b"1")
        async with router.open():
            await until_there(stream, {"handled.eu.a": b"1"})
            await stream.publish("$KV.here.eu.a", b"", PURGE)
            await until_there(stream, {"handled.eu.a": None})
        assert seen == ["eu.a", "eu.a"]


async def test_a_payload_is_computed_for_values_and_not_for_deletes(server: NatsServer) -> None:
    async with two_buckets(server) as stream, watched(copying(server, to={"payload": "body.a"}), Watch()):
        await stream.publish("$KV.here.a", b'{"a": "x"}')
        await until_there(stream, {"a": b"x"})
        await stream.publish("$KV.here.a", b"", DELETE)
        await until_there(stream, {"a": None})


@pytest.mark.parametrize("headers", [DELETE, PURGE])
async def test_other_destinations_see_deletes(server: NatsServer, headers: list[tuple[str, str]]) -> None:
    async with two_buckets(server) as stream:
        await stream.create_stream("SINK", ["sink.>"])
        origin = {"bucket": "here", "durable": "copy"}
        route = {"name": "copy", "from": origin, "to": [{"subject": "sink.{{key()}}"}]}
        async with watched(settings(server.url, routes=[route]), Watch()):
            await stream.publish("$KV.here.a", b"", headers)
            await eventually(lambda: _is(stream.stream_messages("SINK"), lambda found: len(found) == 1))
        (one,) = await stream.stream_messages("SINK")
        assert (one.subject, one.header("KV-Operation")) == ("sink.a", headers[0][1])


async def test_a_subject_is_written_to_a_bucket(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        route = {"name": "put", "from": {"subject": "in.*"}, "to": [{"bucket": "there", "key": "{{wildcard(1)}}"}]}
        async with watched(settings(server.url, routes=[route]), Watch()):
            await stream.client.publish("in.a", b"1", [("Nats-Rollup", "all")])
            await until_there(stream, {"a": b"1"})


# --- refused at the start ---


@needs_server(2, 11, lacks="TTLs of single values")
async def test_a_bucket_that_takes_no_values_with_a_ttl_is_refused_by_name(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        await stream.edit_stream("KV_here", allow_msg_ttl=True)
        watch = Watch()
        async with watched(copying(server), watch):
            event = await watch.until("NATS_SUBSCRIBE_ERROR")
            assert event.reason == "bucket_mismatch"
            assert "nats stream edit KV_there --allow-msg-ttl" in event.detail
            await stream.publish("$KV.here.a", b"1", [("Nats-TTL", "1h")])
            await stream.edit_stream("KV_there", allow_msg_ttl=True)
            await until_there(stream, {"a": b"1"})


async def test_a_bucket_that_is_a_mirror_is_refused_by_name_as_a_destination(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        await stream.api("STREAM.CREATE.KV_mirror", {"name": "KV_mirror", "mirror": {"name": "KV_there"}})
        watch = Watch()
        async with watched(copying(server, to={"bucket": "mirror"}), watch):
            event = await watch.until("NATS_DESTINATION_NOT_STORED")
            assert event.reason == "stream_is_mirror"
            assert "'KV_mirror' is a mirror" in event.detail


# --- older and newer values ---


async def test_a_redelivered_value_does_not_replace_a_newer_one(server: NatsServer) -> None:
    """Its ack was lost, the router was away for longer than the copy remembers ids, and a newer value is there."""
    async with two_buckets(server) as stream:
        for payload in (b"1", b"2"):
            await stream.publish("$KV.here.a", payload)
        await stream.create_consumer("KV_here", "copy", filter_subject="$KV.*.>", ack_wait=2 * 10**9)
        inbox = await stream.client.subscribe("hand")
        await stream.client.publish("$JS.API.CONSUMER.MSG.NEXT.KV_here.copy", b'{"batch": 2}', None, "hand")
        first, second = await inbox.next(), await inbox.next()
        assert first.reply is not None
        assert second.reply is not None
        await stream.client.publish(second.reply, b"+ACK")
        time = second.reply.split(".")[7]
        await stream.publish("$KV.there.a", b"2", [("Nats-Msg-Id", f"KV_here:2:{time}:0123456789abcdef")])
        watch = Watch()
        async with watched(copying(server, ack_wait="2s"), watch):
            await eventually(lambda: watch.router.routes[0].filtered["older"] == 1)
            await stream.publish("$KV.here.b", b"3")
            await until_there(stream, {"a": b"2", "b": b"3"})
        assert [one.payload for one in await of_key(stream, "a")] == [b"2"]


async def test_a_forged_id_filters_no_value(server: NatsServer) -> None:
    """A client of the copy claims to have stored a later value; the redelivered one is still the newest of its key."""
    async with two_buckets(server) as stream:
        await stream.publish("$KV.here.a", b"1")
        await stream.create_consumer("KV_here", "copy", filter_subject="$KV.*.>", ack_wait=2 * 10**9)
        inbox = await stream.client.subscribe("hand")
        await stream.client.publish("$JS.API.CONSUMER.MSG.NEXT.KV_here.copy", b'{"batch": 1}', None, "hand")
        await inbox.next()
        await stream.publish("$KV.there.a", b"forged", [("Nats-Msg-Id", f"KV_here:9:{2**62}:0123456789abcdef")])
        watch = Watch()
        async with watched(copying(server, ack_wait="2s"), watch):
            await until_there(stream, {"a": b"1"})
            assert not watch.router.routes[0].filtered["older"]


async def id_of_copy(stream: JetStream, key: str) -> str:
    """Return the id that the copy of the newest value of a key will have, as any client can compute it."""
    *_, value = [one for one in await stream.stream_messages("KV_here") if one.subject == f"$KV.here.{key}"]
    earlier, *_ = await of_key(stream, key)
    ending = str(earlier.header("Nats-Msg-Id")).rpartition(":")[2]
    time = (await stream.api("STREAM.MSG.GET.KV_here", {"seq": value.sequence}))["message"]["time"]
    whole, _, fraction = time.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
    return f"KV_here:{value.sequence}:{seconds}{fraction:0<9}:{ending}"


@pytest.mark.parametrize(
    ("last_writer", "key", "payload", "headers"),
    [
        (False, "a", b"forged", []),
        (False, "b", b"2", []),
        (False, "a", b"2", DELETE),
        (False, "a", b"", PURGE),
        (True, "b", b"2", []),  # a later value of the same key is right to stay
    ],
)
async def test_no_update_is_lost_because_another_client_used_its_id(
    server: NatsServer, last_writer: bool, key: str, payload: bytes, headers: list[tuple[str, str]]
) -> None:
    """It is stored with another id, which `audit` knows, and the next update of the key as always."""
    async with two_buckets(server) as stream:
        given = copying(server, to={"last_writer": last_writer})
        async with watched(given, Watch()):
            await stream.publish("$KV.here.a", b"1")
            await until_there(stream, {"a": b"1"})
        await stream.publish("$KV.here.a", b"2")
        taken = await id_of_copy(stream, "a")
        await stream.publish(f"$KV.there.{key}", payload, [("Nats-Msg-Id", taken), *headers])
        watch = Watch()
        async with watched(given, watch):
            await eventually(lambda: _is(values(stream, "there"), lambda found: found["a"] == b"2"))
            (route,) = watch.router.routes
            await eventually(lambda: route.settled["routed"] == 1)
            assert (sum(route.routed.values()), sum(route.failed.values()), sum(route.filtered.values())) == (1, 0, 0)
            await stream.publish("$KV.here.a", b"3")
            await eventually(lambda: _is(values(stream, "there"), lambda found: found["a"] == b"3"))
            report = await watch.router.audit("copy")
        assert report.counts["missing"] == 0, report.as_json()
        async with open_links(given, "find", connections_for(given, "$KV.here.a")) as links:
            (found,) = (await Finder(given, links).find("$KV.here.a", 2)).messages
        assert found.routes[0].outcome not in ("missing", "expired", "unknown"), found.routes[0]


async def test_a_copy_that_is_stored_is_not_put_again(server: NatsServer) -> None:
    """The route sent it and ended before it was confirmed: now its id is known, and the value is this one."""
    async with two_buckets(server) as stream:
        async with watched(copying(server), Watch()):
            await stream.publish("$KV.here.a", b"1")
            await until_there(stream, {"a": b"1"})
        await stream.publish("$KV.here.a", b"2")
        await stream.publish("$KV.there.a", b"2", [("Nats-Msg-Id", await id_of_copy(stream, "a"))])
        watch = Watch()
        async with watched(copying(server), watch):
            (route,) = watch.router.routes
            await eventually(lambda: route.settled["routed"] == 1)
            assert (sum(route.routed.values()), sum(route.failed.values())) == (1, 0)
        assert [one.payload for one in await of_key(stream, "a")] == [b"1", b"2"]


def both_ways(server: NatsServer) -> Settings:
    """Return settings with routes between buckets `here` and `there` in both directions."""
    routes = [
        {
            "name": f"from-{source}",
            "from": {"bucket": source, "durable": "copy"},
            "to": [{"bucket": to, "last_writer": True}],
        }
        for source, to in (("here", "there"), ("there", "here"))
    ]
    return settings(server.url, routes=routes)


async def sizes(stream: JetStream) -> list[int]:
    """Return the last sequences of both buckets."""
    return [(await stream.stream_info(f"KV_{name}"))["state"]["last_seq"] for name in ("here", "there")]


async def test_two_buckets_are_kept_equal_without_an_echo(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        await stream.publish("$KV.there.old", b"there")
        await stream.publish("$KV.here.both", b"earlier")
        await stream.publish("$KV.there.both", b"later")
        watch = Watch()
        async with watched(both_ways(server), watch):
            await stream.publish("$KV.here.a", b"1")
            await stream.publish("$KV.there.b", b"2")
            expected: dict[str, bytes | None] = {"old": b"there", "both": b"later", "a": b"1", "b": b"2"}
            await until_there(stream, expected)
            await eventually(lambda: _is(values(stream, "here"), lambda found: found == expected))
            await stream.publish("$KV.there.a", b"", PURGE)
            expected["a"] = None
            await eventually(lambda: _is(values(stream, "here"), lambda found: found == expected))
            await until_there(stream, expected)
            await eventually(lambda: sum(route.in_hand for route in watch.router.routes) == 0)
            before = await sizes(stream)
            await stream.publish("$KV.here.end", b"1")
            await until_there(stream, {**expected, "end": b"1"})
            await eventually(lambda: watch.router.routes[1].filtered["echo"] >= 3)
            assert await sizes(stream) == [before[0] + 1, before[1] + 1]
        assert sum(route.conflicts for route in watch.router.routes) == 1
        (conflict,) = watch.of("ROUTE_BUCKET_CONFLICT")
        assert (conflict.subject, conflict.connection) == ("$KV.here.both", "main")
        assert conflict.kept_from == "KV_there"
        assert watch.codes.count("ROUTE_MESSAGE_FAILED") == 0


async def test_versions_that_a_client_has_made_up_are_not_copied_in_a_circle(server: NatsServer) -> None:
    """Of three, each seemed to be newer than the next one: two by their times, and one by its sequence."""
    made_up = ("KV_x 2026-01-01 9 1764000000000000000", "KV_y 2026-01-01 9 5", "KV_y 2026-01-01 1 1764000000000000000")
    async with two_buckets(server) as stream:
        for bucket, version in zip(("there", "here", "there"), made_up, strict=True):
            await stream.publish(f"$KV.{bucket}.key", version.encode(), [("Router-Bucket-Origin", version)])

        async def at_rest() -> bool:
            before = await sizes(stream)
            infos = [await stream.consumer_info(f"KV_{name}", "copy") for name in ("here", "there")]
            waiting = sum(info["num_pending"] + info["num_ack_pending"] for info in infos)
            return waiting == 0 and await sizes(stream) == before

        async with watched(both_ways(server), Watch()):
            await eventually(at_rest, 20)
            assert (await values(stream, "here"))["key"] == (await values(stream, "there"))["key"]


@needs_server(2, 11, lacks="TTLs")
@pytest.mark.parametrize("ahead", [-600.0, 600.0])
async def test_the_rest_of_a_ttl_of_another_writer_is_computed_by_the_clock_of_its_server(
    server: NatsServer, ahead: float
) -> None:
    """The later value is put again with what is left of its TTL, and not with what this router's clock leaves."""
    platform = Platform(wall_clock=lambda: time.time() + ahead)
    async with two_buckets(server, **WITH_TTL) as stream:
        await stream.publish("$KV.here.both", b"earlier")
        await stream.publish("$KV.there.both", b"later", [("Nats-TTL", "5m")])
        await trio.sleep(2.0)  # its age
        router = Router(copying(server, to={"last_writer": True}), platform=platform, log=False)
        async with router.open() as live:
            await eventually(lambda: live.routes[0].settled["routed"] == 1)
        *_, again = await of_key(stream, "both")
        assert (again.payload, again.header("Router-Bucket-Origin") is not None) == (b"later", True)
        assert 285 <= int(str(again.header("Nats-TTL"))) <= 298


@needs_server(2, 12, lacks="message schedules")
@pytest.mark.parametrize("last_writer", [False, True])
async def test_a_value_that_has_waited_for_its_next_attempt_replaces_no_later_one(
    last_writer: bool, server: NatsServer
) -> None:
    async with two_buckets(server) as stream:
        await stream.create_stream("RETRY", ["retry.>"], allow_msg_schedules=True, allow_rollup_hdrs=True)
        await stream.edit_stream("KV_there", max_msg_size=300)
        retry = {"initial": "2s", "factor": 1, "schedule": {"stream": "RETRY", "prefix": "retry", "after": "1s"}}
        origin = {"bucket": "here", "durable": "copy"}
        route = {
            "name": "copy",
            "from": origin,
            "to": [{"bucket": "there", "last_writer": last_writer}],
            "retry": retry,
        }
        given = settings(server.url, routes=[route])
        async with Router(given, log=False).open() as live:
            large = b"x" * 500
            for key in ("changed", "only"):
                await stream.publish(f"$KV.here.{key}", large)
            await eventually(lambda: live.routes[0].settled["scheduled"] >= 2)
            await stream.publish("$KV.here.changed", b"small")
            await until_there(stream, {"changed": b"small"})
            await stream.edit_stream("KV_there", max_msg_size=-1)
            await until_there(stream, {"changed": b"small", "only": large})
            await eventually(lambda: live.routes[0].filtered["older"] == 1)
            assert [one.payload for one in await of_key(stream, "changed")] == [b"small"]
