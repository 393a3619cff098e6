"""`audit` against the truth: histories of deleted, doubled, changed and expired copies, drawn at random."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.audit.audit import EVERYTHING, Audit, Range, connections_of
from router_trio.audit.report import Report
from router_trio.nats.command_link import open_links
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "copy"
from = {{ stream = "SOURCE", durable = "router", filter = "source.*", message_id = "{ids}" }}
{more}
"""
TO = 'to = [ { subject = "sink.{{wildcard(1)}}", jetstream = true } ]\n'
TWO = """
to = [ { subject = "sink.{{wildcard(1)}}", jetstream = true },
       { subject = "other.{{wildcard(1)}}", jetstream = true } ]
"""


STREAMS = ("SOURCE", "SINK", "OTHER", "DEAD")


class Place:
    """A server with a source and a sink, and a configuration."""

    def __init__(self, folder: Path, url: str, stream: JetStream) -> None:
        self.folder = folder
        self.url = url
        self.stream = stream

    def configure(self, more: str = TO, ids: str = "own") -> None:
        (self.folder / "router.toml").write_text(CONFIGURATION.format(url=self.url, more=more, ids=ids))

    async def copied(self, count: int, more: str = TO) -> None:
        """Have the router copy this many messages."""
        self.configure(more)
        await self.publish(count)
        await self.route()
        await trio.sleep(0.2)  # longer than the duplicate window

    async def delete(self, stream: str, *sequences: int) -> None:
        for sequence in sequences:
            await self.stream.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence})

    async def publish(self, count: int, first: int = 0) -> None:
        numbered = [(f"source.{n % 7}", b'{"number": %d}' % n, None) for n in range(first, first + count)]
        await self.stream.publish_many(numbered)

    async def route(self) -> None:
        """Run the router until everything in the source is acked."""

        async def done() -> bool:
            info = await self.stream.consumer_info("SOURCE", "router")
            return bool(info["num_pending"] == 0 == info["num_ack_pending"])

        async with Router(Settings.load(self.folder / "router.toml"), log=False).open():
            await trio.sleep(0.3)
            await eventually(done)

    async def command(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run the command, and return the exit code and the report."""
        result = await over_its_links("audit", "router.toml", "copy", "--json", *arguments, cwd=self.folder)
        assert result.stdout, result.stderr
        return result.returncode, json.loads(result.stdout)

    async def audit(self, wanted: Range = EVERYTHING) -> Report:
        settings = Settings.load(self.folder / "router.toml")
        (route,) = settings.routes
        async with open_links(settings, "audit", connections_of(route)) as links:
            return await Audit(settings, route, links).run(wanted)


@asynccontextmanager
async def place(folder: Path, server: NatsServer, url: str = "") -> AsyncIterator[Place]:
    async with connect(url or server.url) as client:
        stream = JetStream(client)
        for name in STREAMS:
            await stream.create_stream(name, [f"{name.lower()}.*"], duplicate_window=100_000_000)
        yield Place(folder, url or server.url, stream)
        for name in STREAMS:
            await stream.delete_stream(name)


@pytest.mark.parametrize("seed", range(10))
async def test_a_drawn_history(seed: int, tmp_path: Path, server: NatsServer) -> None:
    drawn = Random(seed)
    async with place(tmp_path, server) as here:
        count = drawn.randrange(50, 400)
        await here.copied(count)
        copies = await here.stream.stream_messages("SINK")
        truth: Counter[str] = Counter()
        wrong: dict[int, str] = {}
        for copy in copies:
            fate = drawn.choices(["there", "missing", "twice", "different"], [20, 2, 1, 1])[0]
            truth[fate] += 1
            source = int((copy.header("Nats-Msg-Id") or "").split(":")[1])
            if fate != "there":
                wrong[source] = fate
            if fate == "twice":
                await here.stream.publish(copy.subject, copy.payload, list(copy.headers))
            if fate in ("missing", "different"):
                await here.delete("SINK", copy.sequence)
            if fate == "different":
                await here.stream.publish(copy.subject, b"{}", list(copy.headers))
        pending = drawn.randrange(20)
        await here.publish(pending, count)
        report = await here.audit()
        assert +report.counts == truth + Counter(pending=pending)
        assert {one.sequence: one.stored_class for one in report.findings} == wrong
        assert report.messages == count + pending
        assert report.clean == (not wrong)


async def test_the_command_repairs_what_is_missing(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(20)
        await here.delete("SINK", 3, 4)
        code, report = await here.command()
        assert (code, report["counts"]["missing"], report["gone"]) == (1, 2, 0)
        assert report["findings"][0] == {
            "sequence": 3,
            "subject": "source.2",
            "class": "missing",
            "destination": "main:sink.{{wildcard(1)}}",
            "detail": "",
        }
        code, report = await here.command("--repair")
        assert (code, report["counts"]["there"], report["findings"]) == (0, 20, [])
        # What is repaired has its own id, so that a router that sends it again stores no second copy.
        assert (await here.audit()).counts["twice"] == 0


async def test_a_dry_run_changes_nothing(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(5)
        await here.delete("SINK", 2)
        result = await over_its_links("audit", "router.toml", "copy", "--repair", "--dry-run", cwd=tmp_path)
        assert "would publish sink.1 to connection main" in result.stdout
        assert (await here.audit()).counts["missing"] == 1


async def test_each_of_several_destinations_is_judged(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10, TWO)
        await here.delete("OTHER", 5)
        report = await here.audit()
        assert +report.counts == Counter(there=19, missing=1)
        assert report.findings[0].destination == "main:other.{{wildcard(1)}}"


@pytest.mark.parametrize("strategy", ["weighted", "sticky", "fallback"])
async def test_one_copy_at_any_destination_is_enough_for(strategy: str, tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        key = "key = 'subject'\n" if strategy == "sticky" else ""
        await here.copied(30, f'strategy = "{strategy}"\n{key}{TWO}')
        stored = (await here.stream.stream_info("SINK"))["state"]["messages"]
        assert +(await here.audit()).counts == Counter(there=30)
        await here.delete("SINK" if stored else "OTHER", 1)
        report = await here.audit()
        assert +report.counts == Counter(there=29, missing=1)
        assert " or " in report.findings[0].destination


async def test_messages_that_the_route_filters_out_or_does_not_read(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.edit_stream("SOURCE", subjects=["source.*", "noise.*"])
        await here.stream.publish("noise.1")
        await here.copied(10, "when = 'body.number != 4'\n" + TO)
        report = await here.audit()
        assert +report.counts == Counter(there=9, filtered=1)
        assert report.messages == 10


async def test_dead_letters_are_no_loss(tmp_path: Path, server: NatsServer) -> None:
    failing = """
retry = { attempts = 1 }
dead_letter = { subject = "dead.{{wildcard(1)}}" }
to = [ { subject = "sink.{{wildcard(1)}}", jetstream = true, payload = 'string(body.number / (body.number - 4))' } ]
"""
    async with place(tmp_path, server) as here:
        await here.copied(10, failing)
        assert +(await here.audit()).counts == Counter(there=9, dead_lettered=1)
        await here.delete("DEAD", 1)
        assert +(await here.audit()).counts == Counter(there=9, given_up=1)


async def test_a_copy_that_another_message_of_its_subject_has_replaced_is_expired(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.edit_stream("SINK", max_msgs_per_subject=1)
        await here.copied(10)  # of seven subjects
        assert +(await here.audit()).counts == Counter(there=7, expired=3)


async def test_copies_that_the_limits_of_a_stream_have_removed_are_expired(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.edit_stream("SINK", max_msgs=6)
        await here.copied(10)
        assert +(await here.audit()).counts == Counter(there=6, expired=4)
        # The source stored this one later than the sink its oldest copy, so no limit can have removed it.
        await here.copied(1)
        await here.delete("SINK", 11)
        assert +(await here.audit()).counts == Counter(there=5, expired=5, missing=1)


async def test_a_purge_of_a_stream_without_limits_is_a_loss(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10)
        await here.stream.api("STREAM.PURGE.SINK", {"seq": 4})
        assert +(await here.audit()).counts == Counter(there=7, missing=3)


async def test_ids_of_the_sender(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.configure(ids="sender")
        for number in range(6):
            await here.stream.publish("source.1", b"%d" % number, [("Nats-Msg-Id", f"order-{number}")])
        await here.publish(3)
        await here.route()
        assert +(await here.audit()).counts == Counter(there=9)
        await trio.sleep(0.2)
        (first, *_) = await here.stream.stream_messages("SINK")
        await here.stream.publish(first.subject, first.payload, list(first.headers))
        await here.delete("SINK", 2)
        assert +(await here.audit()).counts == Counter(there=7, twice=1, missing=1)


async def test_a_route_that_had_another_name(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(5)
        text = (tmp_path / "router.toml").read_text()
        (tmp_path / "router.toml").write_text(text.replace('"copy"', '"renamed"'))
        result = await over_its_links("audit", "router.toml", "renamed", "--as", "copy", cwd=tmp_path)
        assert result.returncode == 0, result.stdout
        assert (await here.audit()).counts["missing"] == 5


async def test_ranges_and_messages_that_are_gone(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10)
        await here.stream.api("STREAM.PURGE.SOURCE", {"seq": 3})
        await here.delete("SOURCE", 5)
        report = await here.audit(Range(first=1, last=8))
        assert (report.gone, report.messages, +report.counts) == (3, 5, Counter(there=5))
        stored = await here.stream.api("STREAM.MSG.GET.SOURCE", {"seq": 7})
        code, by_time = await here.command("--from", stored["message"]["time"])
        assert (code, by_time["from"], by_time["messages"]) == (0, 7, 4)


async def test_a_program_audits_a_route_of_its_router(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10)
        await here.delete("SINK", 4)
        async with Router(Settings.load(tmp_path / "router.toml"), log=False).open() as live:
            assert (await live.audit("copy")).counts["missing"] == 1
            assert (await live.audit("copy", repair=True)).clean
            with pytest.raises(ValueError, match="no route 'other' reads a stream"):
                await live.audit("other")


async def test_a_range_that_is_too_long_is_wrong_usage(
    tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router_trio.audit.audit.MAX_SPAN", 4)
    async with place(tmp_path, server) as here:
        await here.copied(5)
        result = await over_its_links("audit", "router.toml", "copy", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        assert "5 sequences are too many for one audit" in result.stderr
        code, report = await here.command("--from", "3")
        assert (code, report["messages"]) == (0, 3)
