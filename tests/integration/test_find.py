"""`find` and `diff --last` over a server: what is known of each message against what the commands print."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.audit.find import Finder, connections_for
from router_trio.audit.outcomes import Whereabouts
from router_trio.errors import SubjectError
from router_trio.nats.command_link import open_links
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
"""
ROUTES = """
[[routes]]
name = "copy"
from = { stream = "SOURCE", durable = "copy", filter = "source.*" }
to = [ { subject = "sink.{{wildcard(1)}}", jetstream = true } ]
[[routes]]
name = "large"
when = 'body.n >= 100'
from = { stream = "SOURCE", durable = "large", filter = "source.*" }
to = [ { subject = "large.all", jetstream = true, payload = 'string(body.n)' } ]
[[routes]]
name = "divided"
retry = { attempts = 1 }
dead_letter = { subject = "dead.letters" }
from = { stream = "SOURCE", durable = "divided", filter = ["source.*", "noise.*"] }
to = [ { subject = "divided.{{wildcard(1)}}", jetstream = true, payload = 'string(1000 / (body.n % 5))' } ]
"""
ONE = """
[[routes]]
name = "copy"
{more}
from = {{ stream = "SOURCE", durable = "copy", filter = "source.*" }}
to = [ {{ subject = "sink.{{{{wildcard(1)}}}}", jetstream = true }} ]
"""
Known = dict[tuple[str, int], list[tuple[str, int]]]
"""Stream and sequence of each copy and dead letter, by their stream and the sequence of their message."""

STREAMS = ("SOURCE", "SINK", "LARGE", "DIVIDED", "DEAD")


class Place:
    """A server with a source, destinations, and a configuration."""

    def __init__(self, folder: Path, url: str, stream: JetStream) -> None:
        self.folder = folder
        self.url = url
        self.stream = stream

    def configure(self, routes: str, name: str = "router.toml") -> None:
        (self.folder / name).write_text(CONFIGURATION.format(url=self.url) + routes)

    async def route(self, *durables: str) -> None:
        """Run the router until everything in the source is settled."""

        async def done() -> bool:
            for one in durables:
                info = await self.stream.consumer_info("SOURCE", one)
                if info["num_pending"] or info["num_ack_pending"]:
                    return False
            return True

        async with Router(Settings.load(self.folder / "router.toml"), log=False).open():
            await trio.sleep(0.3)
            await eventually(done)

    async def publish(self, numbers: range, area: str = "source") -> None:
        await self.stream.publish_many([(f"{area}.{n % 7}", b'{"n": %d}' % n, None) for n in numbers])

    async def command(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        result = await over_its_links("find", "router.toml", "--json", *arguments, cwd=self.folder)
        assert result.stdout, result.stderr
        return result.returncode, json.loads(result.stdout)


@asynccontextmanager
async def place(folder: Path, server: NatsServer) -> AsyncIterator[Place]:
    async with connect(server.url) as client:
        stream = JetStream(client)
        for name in STREAMS:
            subjects = [f"{name.lower()}.*", *(["noise.*"] if name == "SOURCE" else [])]
            await stream.create_stream(name, subjects, duplicate_window=100_000_000)
        yield Place(folder, server.url, stream)
        for name in STREAMS:
            await stream.delete_stream(name)


async def test_100_drawn_messages(tmp_path: Path, server: NatsServer) -> None:
    drawn = Random(7)
    async with place(tmp_path, server) as here:
        here.configure(ROUTES)
        await here.publish(range(200))
        await here.publish(range(200, 230), "noise")
        await here.route("copy", "large", "divided")
        known: Known = defaultdict(list)
        for name in STREAMS[1:]:
            for one in await here.stream.stream_messages(name):
                source = int((one.header("Nats-Msg-Id") or "").split(":")[1])
                known[name, source].append((name, one.sequence))
        deleted = set(drawn.sample([key for key in known if key[0] in ("SINK", "DIVIDED")], 40))
        for name, source in deleted:
            (copy,) = known.pop((name, source))
            await here.stream.api(f"STREAM.MSG.DELETE.{name}", {"seq": copy[1]})
        await here.publish(range(230, 240))
        settings = Settings.load(tmp_path / "router.toml")
        names = connections_for(settings, "source.1")
        async with open_links(settings, "find", names) as links, trio.open_nursery() as nursery:
            limit = trio.CapacityLimiter(10)
            for n in drawn.sample(range(240), 100):
                nursery.start_soon(is_found, Finder(settings, links), n, known, limit)


async def is_found(finder: Finder, n: int, known: Known, limit: trio.CapacityLimiter) -> None:
    """Check what is found of a message: the outcomes, and the places of all copies and dead letters."""
    area = "noise" if 200 <= n < 230 else "source"
    async with limit:
        (found,) = (await finder.find(f"{area}.{n % 7}", n + 1)).messages
    assert outcomes(found) == truth(n, known), n
    places = {place for one in found.routes for place in stored(found, one.route)}
    assert places == {place for name in STREAMS[1:] for place in known.get((name, n + 1), [])}, n


def outcomes(found: Whereabouts) -> dict[str, str]:
    return {one.route: one.outcome for one in found.routes}


def stored(found: Whereabouts, route: str) -> list[tuple[str, int]]:
    (one,) = (one for one in found.routes if one.route == route)
    places = [(place.stream, place.sequence) for copy in one.copies for place in copy.stored]
    return places + ([] if one.letter is None else [(one.letter.stored.stream, one.letter.stored.sequence)])


def truth(n: int, known: Known) -> dict[str, str]:
    """Return the outcome of a message in each route, from what the test has done."""
    if n >= 230:
        return {"copy": "waiting", "large": "waiting", "divided": "waiting"}
    noise = n >= 200
    copy = "routed" if ("SINK", n + 1) in known else "missing"
    divided = "routed" if ("DIVIDED", n + 1) in known else "missing"
    return {
        "copy": "not_of_its_filter" if noise else copy,
        "large": "not_of_its_filter" if noise else ("routed" if n >= 100 else "filtered"),
        "divided": "dead_lettered" if n % 5 == 0 else divided,
    }


async def test_the_command_prints_all_routes_of_the_last_message_of_a_subject(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here:
        here.configure(ROUTES)
        await here.publish(range(30))
        await here.route("copy", "large", "divided")
        result = await over_its_links("find", "router.toml", "source.4", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        lines = [line.split(", stored ")[0] for line in result.stdout.splitlines()]
        assert lines == [
            "source.4, message 26 of stream SOURCE on main",
            "route copy: routed",
            "    there          main:sink.{{wildcard(1)}}: sink.4, message 26 of stream SINK on main",
            "route large: filtered (when)",
            "route divided: dead letter (expression: " + lines[4].partition("expression: ")[2],
            "    dead letter    dead.letters, message 6 of stream DEAD on main",
        ]
        assert "division" in lines[4] or "zero" in lines[4]
        code, found = await here.command("source.4", "--sequence", "19")
        assert (code, found["messages"][0]["sequence"]) == (0, 19)
        assert [one["outcome"] for one in found["messages"][0]["routes"]] == ["routed", "filtered", "routed"]


async def test_a_message_of_a_work_queue_is_found_by_its_copy(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.delete_stream("SOURCE")
        await here.stream.create_stream("SOURCE", ["source.*"], retention="workqueue", duplicate_window=100_000_000)
        here.configure(ONE.format(more=""))
        await here.publish(range(20))
        await here.route("copy")
        code, found = await here.command("source.3")
        (message,) = found["messages"]
        assert (code, message["gone"], message["sequence"]) == (0, True, 18)
        assert message["routes"][0]["copies"][0]["stored"][0]["sequence"] == 18
        result = await over_its_links("find", "router.toml", "source.none", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert "stream SOURCE has no message with the subject source.none" in result.stderr


async def test_a_deploy_that_filters_everything(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.configure(ONE.format(more=""), "old.toml")
        here.configure(ONE.format(more="when = 'body.n < 0'"), "new.toml")
        await here.publish(range(2000))
        result = await over_its_links("diff", "old.toml", "new.toml", "--last", "1000", "copy", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines() == [
            "route copy, stream SOURCE, messages 1,001 to 2,000",
            "of the last 1,000: 1,000 routed -> 0 routed, 1,000 filtered",
            "       1,000  routed -> filtered (when), such as message 2,000 source.4",
            "copies to main:sink.{{wildcard(1)}}: 1,000 -> 0",
        ]
        assert (await here.stream.stream_info("SINK"))["state"]["messages"] == 0
        assert (await here.stream.stream_info("SOURCE"))["state"]["consumer_count"] == 0


async def test_a_subject_among_many_others_is_compared(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.configure(ONE.format(more=""), "old.toml")
        await here.publish(range(3))
        await here.publish(range(3000), "noise")
        await here.publish(range(3, 5))
        result = await over_its_links("diff", "old.toml", "old.toml", "--last", "4", "copy", cwd=tmp_path)
        assert result.stdout.splitlines()[:3] == [
            "route copy, stream SOURCE, messages 2 to 3,005",
            "of the last 4: 4 routed -> 4 routed",
            "nothing would change",
        ]


async def test_control_characters_in_a_dead_letter_do_not_reach_the_terminal(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here:
        here.configure(ROUTES)
        await here.publish(range(10))
        await here.route("divided")
        (letter,) = [one for one in await here.stream.stream_messages("DEAD") if (one.header("Nats-Msg-Id") or "")][:1]
        headers = [(name, "\x1b[2Jx" if name.endswith("Detail") else value) for name, value in letter.headers]
        await here.stream.api("STREAM.PURGE.DEAD", {})
        await trio.sleep(0.2)  # longer than the duplicate window
        await here.stream.publish(letter.subject, letter.payload, headers)
        result = await over_its_links("find", "router.toml", "source.0", "--sequence", "1", cwd=tmp_path)
        assert "dead letter (expression: \\x1b[2Jx)" in result.stdout
        assert "\x1b" not in result.stdout


async def test_a_sequence_that_no_message_can_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text("")
    result = await over_its_links("find", "router.toml", "source.1", "--sequence", str(2**64), cwd=tmp_path)
    assert (result.returncode, "--sequence: " in result.stderr, "too large" in result.stderr) == (2, True, True)


LOST = """
[connections.away]
servers = ["{url}"]
connect_timeout = "500ms"
[[routes]]
name = "copy"
dead_letter = {{ subject = "letters.all", connection = "main", stream = "NONE" }}
from = {{ connection = "main", stream = "SOURCE", durable = "copy", filter = "source.*" }}
to = [
  {{ connection = "main", subject = "sink.{{{{wildcard(1)}}}}", jetstream = true }},
  {{ connection = "main", subject = "lost.{{{{wildcard(1)}}}}", jetstream = true, stream = "LOST" }},
  {{ connection = "away", subject = "away.{{{{wildcard(1)}}}}", jetstream = true }},
]
[[routes]]
name = "other"
from = {{ connection = "main", stream = "SOURCE", durable = "other", filter = "source.*" }}
to = [ {{ connection = "main", subject = "large.{{{{wildcard(1)}}}}", jetstream = true }} ]
[[routes]]
name = "elsewhere"
from = {{ connection = "away", stream = "AWAY", durable = "copy", filter = "away.*" }}
to = [ {{ connection = "main", subject = "divided.{{{{wildcard(1)}}}}", jetstream = true }} ]
"""


async def test_copies_in_a_lost_stream_or_on_a_lost_server_are_unknown_and_the_rest_is_printed(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here, nats_server(tmp_path, name="away") as away:
        here.configure(LOST.format(url=away.url))
        await here.stream.create_stream("LOST", ["lost.*"])
        async with connect(away.url) as client:
            for name in ("AWAY", "NONE"):
                await JetStream(client).create_stream(name, [f"{name.lower()}.*"])
            await here.publish(range(3))
            await here.route("copy", "other")
        await here.stream.delete_stream("LOST")
        away.stop()
        result = await over_its_links("find", "router.toml", "source.1", cwd=tmp_path)
        lines = [line.split(", stored ")[0] for line in result.stdout.splitlines()]
        assert lines == [
            "source.1, message 2 of stream SOURCE on main",
            "route copy: unknown (settled, and the stream of a copy can't be read)",
            lines[2],
            "    there          main:sink.{{wildcard(1)}}: sink.1, message 2 of stream SINK on main",
            "    unknown        main:lost.{{wildcard(1)}} "
            "(there is no stream 'LOST'; create it, or correct its name in the configuration)",
            "route other: routed",
            "    there          main:large.{{wildcard(1)}}: large.1, message 2 of stream LARGE on main",
        ]
        assert lines[2].startswith("    unknown        away:away.{{wildcard(1)}} (connection 'away': ")
        errors = result.stderr.splitlines()
        assert [line.partition("; ")[0] for line in errors if "'away'" not in line] == [
            "router-trio: not read: connection main: there is no stream 'LOST'",
            "router-trio: not read: connection main: there is no stream 'NONE'",
        ]
        assert sum(line.startswith("router-trio: not read: connection 'away': ") for line in errors) == 1
        assert result.returncode == 1


async def test_a_program_finds_a_message_as_the_command_does(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.configure(ROUTES)
        await here.publish(range(30))
        await here.route("copy", "large", "divided")
        settings = Settings.load(tmp_path / "router.toml")
        async with Router(settings, log=False).open() as live:
            for arguments in (("source.4",), ("source.4", 19), ("source.9",)):
                found = await live.find(*arguments)
                options = ["--sequence", str(arguments[1])] if len(arguments) > 1 else []
                assert (await here.command(str(arguments[0]), *options))[1] == found.as_json()
            assert found.notes == ["stream SOURCE has no message with the subject source.9"]
            with pytest.raises(SubjectError):
                await live.find("source.*")
            with pytest.raises(ValueError, match="there is no route 'cpoy'"):
                await live.find("source.4", former_names={"cpoy": "copy"})
        only_subjects = settings.model_copy(update={"routes": []})
        async with Router(only_subjects, log=False).open() as live:
            with pytest.raises(ValueError, match="no route reads a stream"):
                await live.find("source.4")


async def test_a_renamed_route_is_searched_under_the_name_that_it_had(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.configure(ROUTES)
        await here.publish(range(12))
        await here.route("copy", "large", "divided")
        here.configure(ROUTES.replace('name = "divided"', 'name = "a=b"'))
        for message, outcome in ((2, "routed"), (1, "dead_lettered")):
            arguments = [f"source.{message - 1}", "--sequence", f"{message}"]
            _, unnamed = await here.command(*arguments)
            assert unnamed["messages"][0]["routes"][2]["outcome"] in ("missing", "given_up")
            code, found = await here.command(*arguments, "--as", "a=b=divided")
            routes = found["messages"][0]["routes"]
            assert (code, routes[2]["name"], routes[2]["outcome"]) == (0, "a=b", outcome)
            assert routes[0]["outcome"] == "routed"
        async with Router(Settings.load(tmp_path / "router.toml"), log=False).open() as live:
            as_value = await live.find("source.0", 1, former_names={"a=b": "divided"})
        assert as_value.messages[0].as_json()["routes"] == routes
        code, found = await here.command("noise.1", "--as", "divided")  # which one route reads
        assert code == 1


@pytest.mark.parametrize(
    ("subject", "alias", "error"),
    [
        ("source.1", "old", "--as old: copy, large, divided read source.1; give --as ROUTE=old"),
        ("source.1", "copies=old", "--as copies=old: no route 'copies' from a stream reads source.1; did you mean"),
        ("source.1", "copy=", "--as copy=: the name that route copy had is missing"),
        ("noise.1", "copy=old", "--as copy=old: no route 'copy' from a stream reads noise.1"),
        ("other.1", "old", "--as old: no route from a stream reads other.1"),
    ],
)
async def test_a_former_name_must_be_that_of_one_route(tmp_path: Path, subject: str, alias: str, error: str) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url="nats://127.0.0.1:1") + ROUTES)
    result = await over_its_links("find", "router.toml", subject, "--as", alias, cwd=tmp_path)
    assert (result.returncode, error in result.stderr) == (2, True), result.stderr
