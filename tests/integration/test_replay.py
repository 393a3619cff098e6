"""`router-trio replay`: a range of the source once more through its route."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from router_trio import Router, Settings
from tests.support.command import over_its_links, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "copy"
{more}
from = {{ stream = "SOURCE", durable = "router", filter = "source.*" }}
to = [ {{ subject = "sink.{{{{wildcard(1)}}}}", jetstream = true }} ]
[[routes]]
name = "core"
from = {{ subject = "core" }}
to = [ {{ subject = "heard" }} ]
"""


class Place:
    """A server with a source and a sink, and a configuration."""

    def __init__(self, folder: Path, url: str, streams: JetStream) -> None:
        self.folder = folder
        self.url = url
        self.streams = streams
        self.configure()

    def configure(self, more: str = "") -> None:
        (self.folder / "router.toml").write_text(CONFIGURATION.format(url=self.url, more=more))

    async def publish(self, count: int, first: int = 0) -> None:
        numbered = [(f"source.{n % 7}", json.dumps({"n": n}).encode(), None) for n in range(first, first + count)]
        await self.streams.publish_many(numbered)

    async def routed(self, count: int) -> None:
        """Publish and route this many messages, with the router then stopped."""
        await self.publish(count)

        async def done() -> bool:
            info = await self.streams.consumer_info("SOURCE", "router")
            return bool(info["num_pending"] == 0 == info["num_ack_pending"])

        async with Router(Settings.load(self.folder / "router.toml"), log=False).open():
            await trio.sleep(0.3)
            await eventually(done)

    async def copies(self) -> list[StoredMessage]:
        return list(await self.streams.stream_messages("SINK"))

    async def numbers(self) -> list[int]:
        return [json.loads(one.payload)["n"] for one in await self.copies()]

    async def replay(self, *arguments: str, route: str = "copy") -> tuple[int, dict[str, int], str]:
        """Run the command, and return the exit code, the counts and what it reported."""
        result = await over_its_links("replay", "router.toml", route, *arguments, cwd=self.folder)
        found = re.findall(r"([\d,]+) (?:would be )?(replayed|stored before|filtered|failed|skipped)", result.stdout)
        counts = {name: int(count.replace(",", "")) for count, name in found}
        return result.returncode, {name: count for name, count in counts.items() if count}, result.stderr


@asynccontextmanager
async def place(folder: Path, url: str, user: str | None = None) -> AsyncIterator[Place]:
    async with connect(url, user=user, password=user) as client:
        streams = JetStream(client)
        await streams.create_stream("SOURCE", ["source.*"])
        await streams.create_stream("SINK", ["sink.*"])
        yield Place(folder, url, streams)


async def test_stored_copies_stay_stored_once_and_lost_copies_are_stored_in_order(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(100)
        before = await here.copies()
        assert await here.replay("--from", "1") == (0, {"stored before": 100}, "")
        assert await here.copies() == before
        await here.streams.delete_stream("SINK")
        await here.streams.create_stream("SINK", ["sink.*"])
        consumer = await here.streams.consumer_info("SOURCE", "router")
        assert await here.replay("--from", "11", "--to", "60") == (0, {"replayed": 50}, "")
        copies = await here.copies()
        assert await here.numbers() == [*range(10, 60)]
        ids = {one.payload: one.header("Nats-Msg-Id") for one in before}
        assert all(ids[one.payload] == one.header("Nats-Msg-Id") for one in copies), "the ids that they had"
        after = await here.streams.consumer_info("SOURCE", "router")
        assert after["ack_floor"] == consumer["ack_floor"], "the durable does not move"


async def test_a_dry_run_counts_no_stored_copies_since_it_does_not_ask_for_them(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(3)
        result = await over_its_links("replay", "router.toml", "copy", "--from", "1", "--dry-run", cwd=tmp_path)
        counts = "3 would be replayed, 0 filtered, 0 failed, 0 skipped"
        assert (result.returncode, result.stdout) == (0, f"route copy, messages 1 to 3: {counts}\n")


async def test_a_range_that_is_left_to_the_route_is_named(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(3)
        await here.publish(9, first=3)
        result = await over_its_links("replay", "router.toml", "copy", "--from", "10", cwd=tmp_path)
        why = "the range ends with message 3 and begins with 10; the route itself sends later messages"
        assert (result.returncode, result.stdout) == (0, f"route copy: nothing to replay, as {why}\n")


async def test_new_ids_store_everything_again_and_in_order(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(200)
        assert await here.replay("--from", "1", "--new-ids") == (0, {"replayed": 200}, "")
        assert await here.numbers() == [*range(200), *range(200)]
        ids = [one.header("Nats-Msg-Id") for one in await here.copies()]
        assert len(set(ids)) == 400


async def test_only_what_the_condition_selects_is_replayed(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(20)
        where = ("--where", "body.n >= 15 && subject != 'source.3'")
        assert await here.replay("--from", "1", "--new-ids", "--dry-run", *where) == (
            0,
            {"replayed": 4, "skipped": 16},
            "",
        )
        assert len(await here.copies()) == 20, "nothing was sent"
        assert await here.replay("--from", "1", "--new-ids", *where) == (0, {"replayed": 4, "skipped": 16}, "")
        assert (await here.numbers())[20:] == [15, 16, 18, 19]
        code, counts, errors = await here.replay("--from", "20", "--where", "body.missing > 1")
        assert (code, counts, "message 20: --where failed" in errors) == (1, {"failed": 1}, True), errors


async def test_messages_that_the_route_filters_or_that_fail_in_it_do_not_stop_the_others(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(10)
        here.configure("when = 'body.n != 3 && 1 / (body.n - 5) < 10'")
        code, counts, errors = await here.replay("--from", "1", "--new-ids")
        assert (code, counts) == (1, {"replayed": 8, "filtered": 1, "failed": 1})
        assert "message 6: it fails in the route: expression" in errors
        assert (await here.numbers())[10:] == [0, 1, 2, 4, 6, 7, 8, 9]


async def test_messages_that_the_route_has_not_settled_are_left_to_it(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(10)
        await here.publish(5, first=10)
        assert await here.replay("--from", "6", "--to", "15", "--new-ids") == (0, {"replayed": 5}, "")
        assert (await here.numbers())[10:] == [5, 6, 7, 8, 9]


async def test_a_refused_copy_ends_the_replay_and_nothing_of_its_subject_passes_it(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(50)
        await here.streams.edit_stream("SINK", max_msgs=60, discard="new")
        code, counts, errors = await here.replay("--from", "1", "--new-ids")
        assert (code, counts) == (1, {"replayed": 10})
        assert "message 11: sink.3 on connection main was refused: maximum messages exceeded" in errors
        assert "ended after message 10; continue with --from 11" in errors
        await here.streams.edit_stream("SINK", max_msgs=-1)
        assert (await here.replay("--from", "11", "--new-ids"))[:2] == (0, {"replayed": 40})
        assert (await here.numbers())[50:] == [*range(50)]


async def test_a_work_queue_is_read_without_taking_anything_from_it(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        await here.streams.delete_stream("SOURCE")
        await here.streams.create_stream("SOURCE", ["source.*"], retention="workqueue")
        await here.routed(10)
        assert await here.replay("--from", "1") == (0, {}, ""), "settled messages are gone"


async def test_a_replay_while_the_router_runs_leaves_its_ledger_alone(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(50)
        async with Router(Settings.load(tmp_path / "router.toml"), log=False).open() as live:
            assert (await here.replay("--from", "1", "--to", "50", "--new-ids"))[:2] == (0, {"replayed": 50})
            await here.publish(10, first=50)
            await eventually(lambda: live.routes[0].settled["routed"] == 10)
            assert live.routes[0].received == 10


@pytest.mark.parametrize(
    ("route", "arguments", "why"),
    [
        ("copy", [], "needs --from"),
        ("core", ["--from", "1"], "keeps no messages to replay"),
        ("cop", ["--from", "1"], "did you mean 'copy'?"),
        ("copy", ["--from", "x"], "neither a sequence nor a time"),
        ("copy", ["--from", "9", "--to", "3"], "--to 3 is before --from 9"),
        ("copy", ["--from", "2026-11-02", "--to", "2026-11-01"], "--to 2026-11-01T00:00:00Z is before --from"),
        ("copy", ["--from", "1", "--where", "body."], "--where, line 1, column 6: "),
    ],
)
async def test_wrong_usage(route: str, arguments: list[str], why: str, tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        code, _, errors = await here.replay(*arguments, route=route)
        assert (code, why in errors) == (2, True), errors


async def test_a_range_without_messages_is_named(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        result = await over_its_links("replay", "router.toml", "copy", "--from", "7", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == "route copy: nothing to replay, as the range ends with message 0 and begins with 7\n"
        await here.streams.delete_stream("SOURCE")
        result = await over_its_links("replay", "router.toml", "copy", "--from", "7", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert "there is no stream 'SOURCE'; create it, or correct its name" in result.stderr


async def test_a_replay_that_may_not_read_the_durable_continues_at_its_own_range(tmp_path: Path) -> None:
    denied = "$JS.API.CONSUMER.INFO.SOURCE.router"
    users = f'{{user: a, password: a}}, {{user: r, password: r, permissions: {{publish: {{deny: ["{denied}"]}}}}}}'
    config = f"authorization {{ users: [{users}] }}"
    async with nats_server(tmp_path, config=config) as server, place(tmp_path, server.url, user="a") as here:
        here.url = server.url.replace("//", "//r:r@")
        here.configure()
        await here.publish(9)
        code, counts, errors = await here.replay("--from", "7")
    assert (code, counts) == (1, {})
    assert "ended before any message was confirmed; continue with --from 7" in errors
    assert f"this user may not publish to {denied}" in errors


@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM", "killed server"])
async def test_a_replay_that_is_ended_early_continues_and_loses_nothing(end: str, tmp_path: Path) -> None:
    count = 300
    async with nats_server(tmp_path) as server:
        async with place(tmp_path, server.url) as here:
            here.configure("when = 'body.n % 5 != 0'\nlimit = { rate = '200/s' }")
            await here.publish(count)
            async with running("replay", "router.toml", "copy", "--from", "11", cwd=tmp_path) as replay:

                async def has_begun() -> bool:
                    return len(await here.copies()) >= 70

                await eventually(has_begun, within=30)
                if end == "killed server":
                    await server.kill()
                else:
                    replay.send(signal.Signals[end])
                assert await replay.ended() == (1 if end == "killed server" else 130)
                if end != "killed server":
                    assert (await here.streams.api("CONSUMER.NAMES.SOURCE"))["consumers"] in (None, []), "none is left"
        if end == "killed server":
            await server.restart()
        found = re.search(r"ended after message (\d+); continue with --from (\d+)", replay.errors)
        assert found is not None, replay.errors
        confirmed, start = int(found[1]), int(found[2])
        assert confirmed + 1 == start <= count
        due = [n for n in range(10, confirmed) if n % 5]
        assert f"copy, messages 11 to 300: {len(due)} replayed, 0 stored before" in replay.output
        async with connect(server.url) as client:
            here = Place(tmp_path, server.url, JetStream(client))
            here.configure("when = 'body.n % 5 != 0'")
            code, counts, _ = await here.replay("--from", str(start))
            assert (code, sum(counts.values())) == (0, count - confirmed)
            assert await here.numbers() == [n for n in range(10, count) if n % 5], "each once, and in order"


@pytest.mark.parametrize("retention", ["limits", "interest"])
async def test_only_a_stream_that_keeps_all_messages_is_read_by_a_consumer(
    retention: str, tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server.url) as here:
        await here.streams.delete_stream("SOURCE")
        await here.streams.create_stream("SOURCE", ["source.*"], retention=retention)
        await here.streams.create_consumer("SOURCE", "other")  # which keeps the messages
        await here.routed(300)
        advisories = await here.streams.client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.*.SOURCE.>")
        assert await here.replay("--from", "1", "--new-ids") == (0, {"replayed": 300}, "")
        assert (await here.numbers())[300:] == [*range(300)]
        await here.streams.client.ping()
        names = {one.subject.split(".")[6] for one in advisories.waiting()}
        assert [name.partition("-")[0] for name in names] == (["replay"] if retention == "limits" else [])
        assert (await here.streams.api("CONSUMER.NAMES.SOURCE"))["consumers"] == ["other", "router"]


async def test_headers_and_payloads_are_replayed_as_they_are(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        headers = [("a", "1"), ("b", ""), ("a", "2")]
        await here.streams.publish("source.1", bytes(range(256)), headers)
        await here.routed(1)
        assert await here.replay("--from", "1", "--to", "1", "--new-ids") == (0, {"replayed": 1}, "")
        before, _, after = await here.copies()
        assert (after.payload, after.headers[:-1]) == (before.payload, before.headers[:-1])
        assert list(after.headers[:3]) == headers


async def test_a_replay_goes_on_without_its_consumer(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        await here.routed(200)
        here.configure("limit = { rate = '200/s' }")
        async with trio.open_nursery() as nursery:

            async def delete() -> None:
                while len(await here.copies()) < 220:
                    await trio.sleep(0.02)
                names = (await here.streams.api("CONSUMER.NAMES.SOURCE"))["consumers"]
                for name in names:
                    if name.startswith("replay-"):
                        await here.streams.delete_consumer("SOURCE", name)

            nursery.start_soon(delete)
            assert await here.replay("--from", "1", "--new-ids") == (0, {"replayed": 200}, "")
        assert (await here.numbers())[200:] == [*range(200)]


async def test_a_replay_needs_no_permission_to_create_a_consumer(tmp_path: Path) -> None:
    denied = "$JS.API.CONSUMER.CREATE.>"
    users = f'{{user: a, password: a}}, {{user: r, password: r, permissions: {{publish: {{deny: ["{denied}"]}}}}}}'
    config = f"authorization {{ users: [{users}] }}"
    async with nats_server(tmp_path, config=config) as server, place(tmp_path, server.url, user="a") as here:
        here.url = server.url.replace("//", "//r:r@")
        here.configure()
        await here.publish(9)
        assert await here.replay("--from", "1") == (0, {"replayed": 9}, "")


ON_ASYNCIO = """
import asyncio
from contextlib import asynccontextmanager

@asynccontextmanager
async def resources():
    await asyncio.sleep(0.01)
    yield {"loop": asyncio.get_running_loop()}

async def handle(message, pool):
    await asyncio.sleep(0)
    assert pool["loop"] is asyncio.get_running_loop()
    return message
"""


async def test_a_handler_on_asyncio_is_called_within_the_lifespan(server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(ON_ASYNCIO)
    async with place(tmp_path, server.url) as one:
        one.configure('handler = "shop:handle"')
        path = tmp_path / "router.toml"
        router = '[router]\nloop = "asyncio"\nlifespan = "shop:resources"\n'
        path.write_text(router + path.read_text())
        await one.publish(20)
        code, counts, errors = await one.replay("--from", "1")
        assert (code, counts) == (0, {"replayed": 20}), errors
        assert await one.numbers() == [*range(20)]
