"""Delays and scheduled retries with a real nats-server."""

from __future__ import annotations

import json
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Retry, Router, Settings
from router_trio.link import Link, SchedulesCount, SchedulesSpec
from router_trio.nats.link import Dialer
from router_trio.protocol import schedules as protocol_schedules
from router_trio.protocol.headers import Headers, decode, encode
from router_trio.router.options import RetryOptions, RetryScheduleOptions
from router_trio.settings import ConnectionSettings
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer

pytestmark = [pytest.mark.slow, needs_server(2, 12, lacks="message schedules")]

LATEST = 2.0
"""Seconds after its time within which a server publishes a schedule."""


def settings(server: NatsServer, *routes: dict[str, Any], **streams: list[str]) -> Settings:
    """Return the settings of a router with these routes and streams, which keep schedules."""
    return Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": [server.url]}},
        streams=[
            {"name": name, "subjects": subjects, "allow_message_schedules": name != "IN"}
            for name, subjects in streams.items()
        ],
        routes=list(routes),
    )


def retrying(delay: str) -> RetryOptions:
    """Return `[routes.retry]` with delays up to this one, which are all scheduled."""
    schedule: RetryScheduleOptions = {"stream": "RETRY", "prefix": "retry", "after": "10ms"}
    return {"initial": delay, "factor": 1.0, "max": delay, "schedule": schedule}


def link_to(server: NatsServer) -> AbstractAsyncContextManager[Link]:
    """Return a link to the server."""
    return Dialer(ConnectionSettings(servers=[server.url]), "main")(server.url, INBOX, Recorder())


async def published(jetstream: JetStream, stream: str, below: str) -> list[StoredMessage]:
    """Return the messages of a stream below a subject."""
    return [one for one in await jetstream.stream_messages(stream) if one.subject.startswith(below)]


async def test_copies_are_published_when_they_are_due(server: NatsServer) -> None:
    route = {
        "name": "later",
        "from": {"stream": "IN", "durable": "router", "filter": "in.*"},
        "to": [{"subject": "out.{{wildcard(1)}}", "delay": "duration(body.wait)", "schedule_prefix": "later"}],
    }
    waits = [0.0, 0.3, 1.0, 1.7, 2.5]
    config = settings(server, route, IN=["in.*"], OUT=["out.*", "later.*"])
    async with connect(server.url) as client, Router(config, log=False).open() as live:
        jetstream = JetStream(client)
        sent = {}
        for number, wait in enumerate(waits):
            sent[f"out.{number}"] = time.time() + wait
            await jetstream.publish(f"in.{number}", f'{{"wait": "{wait}s"}}'.encode())
        await eventually(lambda: live.routes[0].settled["routed"] == len(waits))
        await eventually(lambda: _all(jetstream, "OUT", "out.", len(waits)), 10.0)
        for one in await published(jetstream, "OUT", "out."):
            assert sent[one.subject] <= one.time <= sent[one.subject] + LATEST
            assert one.header("Nats-Msg-Id") is None
            assert str(one.header("Router-Message-Id")).startswith("IN:")
        assert not await published(jetstream, "OUT", "later.")


async def test_a_copy_of_the_year_9999_is_not_published_at_once(server: NatsServer) -> None:
    route = {
        "name": "later",
        "from": {"stream": "IN", "durable": "router", "filter": "in.*"},
        "to": [{"subject": "out.{{wildcard(1)}}", "delay": "timestamp(body.at)", "schedule_prefix": "later"}],
    }
    config = settings(server, route, IN=["in.*"], OUT=["out.*", "later.*"])
    async with connect(server.url) as client, Router(config, log=False).open() as live:
        jetstream = JetStream(client)
        await jetstream.publish("in.never", b'{"at": "9999-12-31T23:59:59Z"}')
        await eventually(lambda: live.routes[0].settled["routed"] == 1)
        await jetstream.publish("in.now", b'{"at": "2020-01-01T00:00:00Z"}')
        await eventually(lambda: _all(jetstream, "OUT", "out.", 1), 10.0)
        await jetstream.publish("in.then", b'{"at": "2020-01-01T00:00:00Z"}')
        await eventually(lambda: _all(jetstream, "OUT", "out.then", 1), 10.0)
        assert [one.subject for one in await published(jetstream, "OUT", "out.")] == ["out.now", "out.then"]


async def _all(jetstream: JetStream, stream: str, below: str, count: int) -> bool:
    return len(await published(jetstream, stream, below)) >= count


async def test_retries_wait_in_their_stream_and_return_as_they_were(server: NatsServer) -> None:
    calls: list[tuple[float, Message]] = []

    def fails_twice(message: Message) -> Message:
        calls.append((time.time(), message))
        if len(calls) < 3:
            raise Retry(after=0.5)  # a drawn delay may be below that of a schedule
        return message

    retry = retrying("500ms")
    config = settings(server, IN=["in.*"], RETRY=["retry.>"], OUT=["out.*"])
    router = Router(config, log=False)
    router.route(name="again", stream="IN", durable="router", filter="in.*", retry=retry, to="out.{{wildcard(1)}}")(
        fails_twice
    )
    async with connect(server.url) as client, router.open() as live:
        jetstream = JetStream(client)
        await jetstream.publish("in.x", b"body", [("X-Kept", "1"), ("Nats-Msg-Id", "7"), ("nats-odd", "2")])
        await eventually(lambda: live.routes[0].settled["routed"] == 1, 15.0)
        assert {fate: count for fate, count in live.routes[0].settled.items() if count} == {"routed": 1, "scheduled": 2}
        [copy] = await published(jetstream, "OUT", "out.")
        assert (copy.subject, copy.payload, copy.header("X-Kept")) == ("out.x", b"body", "1")
        info = await jetstream.api("CONSUMER.INFO.IN.router")
        assert (info["num_ack_pending"], info["num_pending"]) == (0, 0)
    first = calls[0][1]
    assert first.headers["Nats-Msg-Id"] == "7"
    for _, one in calls[1:]:
        assert (one.subject, one.payload, one.headers) == (first.subject, first.payload, first.headers)
        assert (one.stream, one.sequence, one.timestamp) == ("IN", 1, first.timestamp)


async def test_a_router_that_ends_leaves_its_retries_to_the_next_one(server: NatsServer) -> None:
    retry = retrying("1s")
    config = settings(server, IN=["in.*"], RETRY=["retry.>"], OUT=["out.*"])
    fails = True

    def handler(message: Message) -> Message:
        if fails:
            raise ValueError
        return message

    def opened() -> Router:
        router = Router(config, log=False)
        router.route(name="again", stream="IN", durable="router", filter="in.*", retry=retry, to="out.{{wildcard(1)}}")(
            handler
        )
        return router

    async with connect(server.url) as client:
        jetstream = JetStream(client)
        async with opened().open() as live:
            await eventually(lambda: live.routes[0].state == "running")
            for number in range(20):
                await jetstream.publish(f"in.{number}", b"%d" % number)
            await eventually(lambda: live.routes[0].settled["scheduled"] >= 20, 15.0)
        fails = False
        async with opened().open():
            await eventually(lambda: _all(jetstream, "OUT", "out.", 20), 15.0)
            await trio.sleep(0.2)
        copies = sorted(int(one.payload) for one in await published(jetstream, "OUT", "out."))
    assert copies == list(range(20))


CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "later"
from = {{ stream = "IN", durable = "router", filter = "in.*" }}
retry = {{ schedule = {{ stream = "RETRY", prefix = "retry" }} }}
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}"
jetstream = true
delay = "1h"
schedule_prefix = "later"
"""


@needs_server(2, 14, lacks="Nats-Schedule-Next")
async def test_schedules_are_listed_cancelled_and_published_by_hand(server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=server.url))
    due = int((time.time() + 3600) * 1e9)

    async def schedules(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        done = await over_its_links("schedules", "router.toml", "later", *arguments, "--json", cwd=tmp_path)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    async with connect(server.url) as client, link_to(server) as link:
        jetstream = JetStream(client)
        await jetstream.create_stream("OUT", ["out.*", "later.*"], allow_msg_schedules=True)
        await jetstream.create_stream("RETRY", ["retry.>"], allow_msg_schedules=True)
        spec = SchedulesSpec("RETRY", "retry", "retry.d.later", "retry-later")
        await link.count_schedules(spec)
        for name in "abc":
            origin = encode(Headers({"Nats-Msg-Id": name, "Router-Origin-Subject": f"in.{name}", "X-Kept": "1"}))
            for subject, target in ((f"later.{name}", b"out.x"), (f"retry.s.later.{name}", b"retry.d.later")):
                block = decode(protocol_schedules.scheduled(origin, due, target))
                await jetstream.publish(subject, name.encode(), [*block.pairs()])
        code, found = await schedules("list")
        assert code == 0
        shown = [(one["stream"], one["subject"], one["sequence"], one["result"]) for one in found]
        assert shown == [("OUT", "in.a", 1, "waits"), ("OUT", "in.b", 2, "waits"), ("OUT", "in.c", 3, "waits")] + [
            ("RETRY", f"in.{name}", sequence, "waits") for sequence, name in enumerate("abc", 2)
        ]
        assert {one["due"] for one in found} == {found[0]["due"]}
        assert (await schedules("fire", "2", "--stream", "OUT"))[1][0]["result"] == "published"
        assert (await schedules("cancel", "1", "--stream", "OUT"))[1][0]["result"] == "cancelled"
        assert (await schedules("cancel", "99"))[0] == 1
        out = await jetstream.stream_messages("OUT")
        assert [(one.subject, one.payload, one.header("X-Kept")) for one in out] == [
            ("later.c", b"c", "1"),
            ("out.x", b"b", "1"),
        ]
        assert out[1].header("Nats-Msg-Id") is None
        code, found = await schedules("fire", "2", "--stream", "RETRY")
        assert (code, [one["result"] for one in found]) == (0, ["published"])
        code, found = await schedules("cancel", "--all", "--stream", "RETRY", "--limit", "1")
        assert (code, [one["result"] for one in found]) == (0, ["cancelled"])
        assert await link.count_schedules(spec) == SchedulesCount(3, 1, 1, 1), "none is lost"
        assert [one.subject for one in await published(jetstream, "RETRY", "retry.d")] == ["retry.d.later"]


SHARED_PREFIX = """
telemetry = {{ listen = "" }}
connections.main.servers = ["{url}"]
streams = [
    {{ name = "IN", subjects = ["in.*.*"] }},
    {{ name = "OUT", subjects = ["out.*", "later.*"], allow_message_schedules = true }},
]
[[routes]]
name = "first"
from = {{ stream = "IN", durable = "first", filter = "in.first.*" }}
to = [ {{ subject = "out.{{{{wildcard(1)}}}}", delay = "1h", schedule_prefix = "later" }} ]
[[routes]]
name = "second"
from = {{ stream = "IN", durable = "second", filter = "in.second.*" }}
to = [ {{ subject = "out.{{{{wildcard(1)}}}}", delay = "1h", schedule_prefix = "later" }} ]
"""


async def test_a_route_has_no_schedules_of_another_one_with_its_prefix(server: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text(SHARED_PREFIX.format(url=server.url))

    async def schedules(route: str, *arguments: str) -> list[str]:
        done = await over_its_links("schedules", "router.toml", route, *arguments, "--json", cwd=tmp_path)
        return sorted(json.loads(line)["subject"] for line in done.stdout.splitlines())

    async with connect(server.url) as client:
        jetstream = JetStream(client)
        async with Router(Settings.load(file), log=False).open() as live:
            for name, number in (("first", 1), ("second", 1), ("first", 2)):
                await live.publish_with_ack(f"in.{name}.{number}", b"{}")
            await eventually(lambda: _all(jetstream, "OUT", "later.", 3))
        assert await schedules("first", "list") == ["out.1", "out.2"]
        assert await schedules("second", "cancel", "--all") == ["out.1"]
        assert await schedules("first", "list") == ["out.1", "out.2"]
        assert await schedules("second", "list") == []
