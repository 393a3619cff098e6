"""Delays and scheduled retries with a real nats-server."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Retry, Router, Settings
from router_trio.events import RouteScheduleLost
from router_trio.link import Link, SchedulesCount, SchedulesSpec
from router_trio.nats.link import Dialer
from router_trio.protocol import schedules as protocol_schedules
from router_trio.protocol.headers import Headers, decode, encode, replace
from router_trio.router.options import RetryOptions, RetryScheduleOptions
from router_trio.routing.route_plans import compile_routes
from router_trio.settings import ConnectionSettings
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.watch import Watch

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


async def test_retries_that_their_stream_loses_with_its_tail_are_reported(server: NatsServer, tmp_path: Path) -> None:
    """As in a power failure: what was stored last is gone, and so is the stream's record of it."""
    config = settings(server, IN=["in.*"], RETRY=["retry.>"], OUT=["out.*"])
    router = Router(config, log=False, observers=[watch := Watch()])

    def fails(message: Message) -> Message:
        raise Retry(after=3600.0)

    router.route(
        name="again", stream="IN", durable="router", filter="in.*", retry=retrying("1h"), to="out.{{wildcard(1)}}"
    )(fails)
    backup = tmp_path / "backup"
    async with router.open() as live:
        for part in (20, 40):
            async with connect(server.url) as client:
                for number in range(20):
                    await JetStream(client).publish(f"in.{number}", b"")
            await eventually(lambda part=part: live.routes[0].settled["scheduled"] == part, 10.0)  # type: ignore[misc]
            await server.terminate()
            if part == 20:
                directory = next(server.directory.rglob("RETRY"))
                shutil.copytree(directory, backup)
                await server.restart()
        shutil.rmtree(directory)
        shutil.copytree(backup, directory)
        await server.restart()
        await eventually(lambda: live.routes[0].schedules_lost > 0, 30.0)
        [lost] = [one for one in watch.events if isinstance(one, RouteScheduleLost)]
    assert (lost.stream, lost.there, lost.lost) == ("RETRY", 20, 20)


@needs_server(2, 14, lacks="cuts headers behind a bare LF")
async def test_no_header_makes_a_failing_message_immortal(server: NatsServer) -> None:
    """A server cuts what begins like a header of schedules up to the next CRLF, and with it the start of the next."""
    retry = retrying("100ms") | {"attempts": 3}
    config = settings(server, IN=["in.*"], RETRY=["retry.>"], OUT=["out.*", "dead.*"])
    router = Router(config, log=False)
    calls: list[Message] = []

    def fails(message: Message) -> Message:
        calls.append(message)
        raise Retry(after=0.05)

    dead: Any = {"subject": "dead.{{wildcard(1)}}"}
    router.route(
        name="again",
        stream="IN",
        durable="router",
        filter="in.*",
        retry=retry,
        dead_letter=dead,
        to="out.{{wildcard(1)}}",
    )(fails)
    async with connect(server.url) as client, router.open() as live:
        block = b"NATS/1.0\r\nX: a\nNats-Schedule-z\r\n\r\n"
        await client.send(b"HPUB in.x %d %d\r\n%b\r\n" % (len(block), len(block) + 4, block + b"body"))
        await client.publish("retry.d.again", b"odd")
        await eventually(lambda: live.routes[0].settled["dead_lettered"] == 2, 20.0)
        letters = await published(JetStream(client), "OUT", "dead.")
    assert sorted((one.subject, one.header("Router-Dead-Letter-Reason")) for one in letters) == [
        ("dead.unknown", "no_origin"),
        ("dead.x", "retry"),
    ]
    assert [one.subject for one in calls] == ["in.x"] * 3


CONFIGURATION = """
telemetry = {{ listen = "" }}
connections.main.servers = ["{url}"]
streams = [
    {{ name = "IN", subjects = ["in.*"] }},
    {{ name = "OUT", subjects = ["out.*", "later.*", "other.*"], allow_message_schedules = true }},
    {{ name = "RETRY", subjects = ["retry.>"], allow_message_schedules = true }},
]
[[routes]]
name = "later"
from = {{ stream = "IN", durable = "router", filter = "in.*" }}
[routes.retry]
initial = "2h"
max = "2h"
schedule = {{ stream = "RETRY", prefix = "retry", after = "10ms" }}
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}"
delay = "1h"
schedule_prefix = "later"
payload = "body.ok"
"""


async def store_schedules(file: Path, jetstream: JetStream) -> None:
    """Have a router store three delayed copies, and three messages that wait for their next attempt."""
    async with Router(Settings.load(file), log=False).open() as live:
        for name in "abc":
            await jetstream.publish(f"in.{name}", f'{{"ok": "{name}"}}'.encode(), [("X-Kept", "1")])
        await eventually(lambda: live.routes[0].settled["routed"] == 3)
        for name in "abc":
            await jetstream.publish(f"in.{name}", b"{}")
        await eventually(lambda: live.routes[0].settled["scheduled"] == 3)


@needs_server(2, 14, lacks="Nats-Schedule-Next")
async def test_schedules_are_listed_cancelled_and_published_by_hand(server: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text(CONFIGURATION.format(url=server.url))

    async def schedules(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        done = await over_its_links("schedules", "router.toml", "later", *arguments, "--json", cwd=tmp_path)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    async with connect(server.url) as client, link_to(server) as link:
        jetstream = JetStream(client)
        await store_schedules(file, jetstream)
        code, found = await schedules("list")
        assert code == 0
        shown = [(one["stream"], one["subject"], one["sequence"], one["result"]) for one in found]
        assert shown == [("OUT", f"out.{name}", sequence, "waits") for sequence, name in enumerate("abc", 1)] + [
            ("RETRY", f"in.{name}", sequence, "waits") for sequence, name in enumerate("abc", 2)
        ]
        assert (await schedules("fire", "2", "--stream", "OUT"))[1][0]["result"] == "published"
        assert (await schedules("cancel", "1", "--stream", "OUT"))[1][0]["result"] == "cancelled"
        assert (await schedules("cancel", "99"))[0] == 1
        out = await jetstream.stream_messages("OUT")
        assert [(one.subject.partition(".")[0], one.payload, one.header("X-Kept")) for one in out] == [
            ("later", b"c", "1"),
            ("out", b"b", "1"),
        ]
        assert out[1].header("Nats-Msg-Id") is None
        code, found = await schedules("fire", "2", "--stream", "RETRY")
        assert (code, [one["result"] for one in found]) == (0, ["published"])
        code, found = await schedules("cancel", "--all", "--stream", "RETRY", "--limit", "1")
        assert (code, [one["result"] for one in found]) == (0, ["cancelled"])
        spec = SchedulesSpec("RETRY", "retry", "retry.d.later", "retry-later")
        assert await link.count_schedules(spec) == SchedulesCount(3, 1, 1, 1), "none is lost"
        assert [one.subject for one in await published(jetstream, "RETRY", "retry.d")] == ["retry.d.later"]


LATER = "@at 2199-01-01T00:00:00Z"


@needs_server(2, 14, lacks="Nats-Schedule-Next")
async def test_only_what_the_route_has_scheduled_is_published_or_cancelled_by_hand(
    server: NatsServer, tmp_path: Path
) -> None:
    """Others may publish where the schedules are. An empty time makes no schedule, so no server looks at its target."""
    file = tmp_path / "router.toml"
    file.write_text(CONFIGURATION.format(url=server.url))
    async with connect(server.url) as client:
        jetstream = JetStream(client)
        await store_schedules(file, jetstream)
        copy, retry = [
            next(one for one in await jetstream.stream_messages(stream) if one.subject.startswith(below))
            for stream, below in (("OUT", "later."), ("RETRY", "retry.s."))
        ]
        for stored, subject, value, target in (
            (copy, "later.1", "", "secret.order"),
            (copy, "later.2", "", "$JS.API.STREAM.DELETE.IN"),
            (copy, "later.3", "", "out.a"),
            (copy, "later.4", LATER, "other.x"),
            (copy, "later.5", LATER, "out.z"),
            (retry, "retry.s.later.1", "", "secret.order"),
            (retry, "retry.s.later.2", "", "retry.d.later"),
            (retry, "retry.s.later.3", LATER, "retry.d.other"),
            (retry, "retry.s.later.4", LATER, "retry.d.later"),
        ):
            kept = [(name, text) for name, text in stored.headers if not name.startswith("Nats-")]
            steering = [("Nats-Schedule", value), ("Nats-Schedule-Target", target)]
            await jetstream.publish(subject, b"forged", [*kept, *steering])
        await jetstream.publish("later.6", b"no schedule")
        (plan,) = compile_routes(Settings.load(file))
        its_id = b"IN:1:1" + plan.destinations[0].copy_id(b"other.x")
        block = protocol_schedules.scheduled(encode(Headers({"Nats-Msg-Id": "x"})), 2**62, b"other.x")
        steering = [*decode(replace(block, b"Router-Message-Id", its_id)).pairs()]
        await jetstream.publish(f"later.{protocol_schedules.token(its_id)}", b"forged", steering)
        secrets, deletes = [await client.subscribe(one) for one in ("secret.>", "$JS.API.STREAM.DELETE.>")]
        lines = []
        for arguments in (["list"], ["fire", "--all"], ["cancel", "--all"]):
            done = await over_its_links("schedules", "router.toml", "later", *arguments, "--json", cwd=tmp_path)
            lines.append([json.loads(line)["result"].partition(":")[0] for line in done.stdout.splitlines()])
            assert "6 messages in OUT are left alone" in done.stderr
            assert "4 messages in RETRY are left alone" in done.stderr
        fired = ["published"] * 3
        assert lines == [["waits"] * 7, [*fired, "left to its stream", *fired], ["cancelled"]]
        subjects = [one.subject for stream in ("OUT", "RETRY") for one in await jetstream.stream_messages(stream)]
        found = [one for one in subjects if not one.startswith(("later.", "retry.s.", "retry.n"))]
        assert found == ["out.a", "out.b", "out.c", *["retry.d.later"] * 3]
        assert len([one for one in subjects if one.startswith(("later.", "retry.s."))]) == 10, "the forged ones"
        await client.ping()
        assert (secrets.waiting(), deletes.waiting()) == ([], [])


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
