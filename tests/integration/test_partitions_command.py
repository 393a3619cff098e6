"""`router-trio partitions`: who leads which partition, and moves by hand. The processes only announce themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import trio

from router_trio import Settings
from router_trio.link import Announced
from router_trio.nats.jetstream import members
from router_trio.nats.jetstream.api import stream_info
from router_trio.nats.jetstream.consumer_config import LEAD_GROUP, LEAD_POLICY
from router_trio.nats.jetstream.sourced_stream import config_of
from router_trio.routing.stream.partitions import source
from router_trio.states import Partitions
from router_trio.subjects.partitions import Partitioning
from router_trio.telemetry.http.status import status
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import nats_server
from tests.support.watch import until_stored, watched

pytestmark = needs_server(2, 12, lacks="partition of a subject as a whole")

CONFIGURATION = """
[connections.main]
servers = ["{url}"]
[[routes]]
name = "orders"
from = {{ stream = "ORDERS", durable = "router", filter = "orders.*", partitions = 4 }}
to = [ {{ subject = "out.{{{{wildcard(1)}}}}", jetstream = true }} ]
[[routes]]
name = "alone"
from = {{ stream = "ORDERS", durable = "alone", filter = "orders.*" }}
to = [ {{ subject = "out.alone.{{{{wildcard(1)}}}}", jetstream = true }} ]
"""

PARTITIONS = Partitioning(4, (), ("orders.*",))
FIRST, SECOND = "5f" * 8, "5a" * 8


async def shared_by(streams: JetStream, partitions: Partitioning, led: Mapping[str, Sequence[int]]) -> None:
    """Create the stream with the partitions, its durables, and the members with what they lead."""
    source = stream_info(json.dumps(await streams.stream_info("ORDERS")).encode())
    await streams.api("STREAM.CREATE.ORDERS-router", config_of("ORDERS-router", source, partitions))
    for number in range(partitions.count):
        (one,) = partitions.filters(number)
        await streams.create_consumer(
            "ORDERS-router",
            f"router-{number}",
            filter_subject=one,
            ack_wait=30 * 10**9,
            max_ack_pending=100_000,
            priority_groups=[LEAD_GROUP],
            priority_policy=LEAD_POLICY,
            priority_timeout=5 * 10**9,
        )
    await streams.api(f"STREAM.CREATE.{members.STREAM}", members.bucket_config(1, "memory"))
    for member, numbers in led.items():
        await announce(streams, member, numbers)


async def announce(streams: JetStream, member: str, led: Sequence[int]) -> None:
    body = members.announcement(Announced("orders-router", "host-1", tuple(led)))
    await streams.publish(f"$KV.{members.BUCKET}.{members.key('ORDERS', 'router', member)}", body)


class Place:
    """A server with a source, and a configuration."""

    def __init__(self, folder: Path, streams: JetStream) -> None:
        self.folder = folder
        self.streams = streams

    async def command(self, *arguments: str, route: str = "orders", name: str = "partitions") -> CompletedProcess[str]:
        return await over_its_links(name, "router.toml", route, *arguments, cwd=self.folder)

    async def shown(self, *arguments: str) -> Any:
        result = await self.command(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    async def moved(self) -> Mapping[int, str]:
        """Return the moves that are stored."""
        subject = f"$KV.{members.BUCKET}.{members.key('ORDERS', 'router', members.MOVED)}"
        stored = [one for one in await self.streams.stream_messages(members.STREAM) if one.subject == subject]
        return members.moved(stored[-1].payload) if stored else {}


@asynccontextmanager
async def place(folder: Path) -> AsyncIterator[Place]:
    async with nats_server(folder) as server, connect(server.url) as client:
        (folder / "router.toml").write_text(CONFIGURATION.format(url=server.url))
        streams = JetStream(client)
        await streams.create_stream("ORDERS", ["orders.*"])
        yield Place(folder, streams)


async def test_it_lists_partitions_and_processes(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        await shared_by(here.streams, PARTITIONS, {FIRST: (0, 2), SECOND: (3,)})
        await here.streams.publish_many((f"orders.{number}", b"", None) for number in range(40))
        with trio.fail_after(10):
            while (await here.streams.stream_info("ORDERS-router"))["state"]["messages"] < 40:
                await trio.sleep(0.01)
        found = await here.shown()
        assert (found["route"], found["stream"], found["count"], found["uncopied"]) == ("orders", "ORDERS-router", 4, 0)
        assert [one["member"] for one in found["partitions"]] == [FIRST, None, FIRST, SECOND]
        assert {one["share"] for one in found["partitions"]} == {FIRST, SECOND}
        assert sum(one["lag"] for one in found["partitions"]) == 40
        assert [(one["unacked"], one["since"], one["moved"]) for one in found["partitions"]] == [(0, None, False)] * 4
        assert found["members"][FIRST] == {"name": "orders-router", "host": "host-1", "led": [0, 2]}
        lines = (await here.command()).stdout.splitlines()
        assert lines[0] == "route orders, stream ORDERS-router: 4 partitions, 2 processes, 1 without a leader"
        assert lines[3].endswith(f"  share of {found['partitions'][1]['share'][:8]}")
        assert [line.split()[:2] for line in lines[2:6]] == [
            ["0", "5f5f5f5f"],
            ["1", "-"],
            ["2", "5f5f5f5f"],
            ["3", "5a5a5a5a"],
        ]
        assert lines[-1].split() == ["5f5f5f5f", "2", "2", "orders-router", "on", "host-1"]


async def test_a_partition_is_moved_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_trio.cli.partitions.LED_WITHIN", 0.5)
    monkeypatch.setattr("router_trio.cli.partitions.LOOK_EVERY", 0.05)
    async with place(tmp_path) as here:
        await shared_by(here.streams, PARTITIONS, {FIRST: (0, 1), SECOND: (2, 3)})
        # It is there already: the move is stored, and nothing has to be waited for.
        found = await here.shown("--move", "1", "--to", "5f5f")
        assert [(one["share"], one["moved"]) for one in found["partitions"]][1] == (FIRST, True)
        assert await here.moved() == {1: FIRST}
        # A process that does not take it: the exit code shows it, and the move stays.
        result = await here.command("--move", "0", "--to", SECOND)
        assert result.returncode == 1
        assert "moved by hand, share of 5a5a5a5a" in result.stdout.splitlines()[2]
        assert await here.moved() == {0: SECOND, 1: FIRST}
        async with trio.open_nursery() as nursery:
            monkeypatch.setattr("router_trio.cli.partitions.LED_WITHIN", 10.0)

            async def hand_over() -> None:
                while await here.moved() != {0: SECOND, 1: SECOND}:
                    await trio.sleep(0.01)
                await announce(here.streams, FIRST, ())
                await announce(here.streams, SECOND, (0, 1, 2, 3))

            nursery.start_soon(hand_over)
            found = await here.shown("--move", "1", "--to", SECOND)
        assert [one["member"] for one in found["partitions"]] == [SECOND] * 4


async def test_moves_to_processes_that_have_gone_are_forgotten_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router_trio.cli.partitions.LED_WITHIN", 0.0)
    async with place(tmp_path) as here:
        await shared_by(here.streams, PARTITIONS, {FIRST: (0, 1, 2, 3)})
        subject = f"$KV.{members.BUCKET}.{members.key('ORDERS', 'router', members.MOVED)}"
        await here.streams.publish(subject, members.moves({0: "0" * 16, 3: FIRST}))
        assert (await here.shown())["partitions"][0]["moved"] is False
        await here.command("--move", "2", "--to", "5f")
        assert await here.moved() == {2: FIRST, 3: FIRST}
        for number in ("2", "3"):
            await here.command("--move", number, "--back")
        with trio.fail_after(10):  # the key expires
            while (await here.streams.stream_info(members.STREAM))["state"]["messages"] > 1:
                await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--move", "4", "--to", "5f"], "--move 4: route orders has the partitions 0 to 3"),
        (["--move", "1"], "--move needs either --to or --back"),
        (["--move", "1", "--to", "5f", "--back"], "--move needs either --to or --back"),
        (["--to", "5f"], "--to needs --move N"),
        (["--back"], "--back needs --move N"),
        (["--move", "1", "--to", "5"], f"--to 5: several processes begin so: {SECOND}, {FIRST}"),
        (["--move", "1", "--to", "77"], f"--to 77: there is no such process: {SECOND}, {FIRST}"),
    ],
)
async def test_a_move_that_can_not_be_is_refused(tmp_path: Path, arguments: list[str], error: str) -> None:
    async with place(tmp_path) as here:
        await shared_by(here.streams, PARTITIONS, {FIRST: (0, 1), SECOND: (2, 3)})
        result = await here.command(*arguments)
        assert (result.returncode, error in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("name", ["partitions", "pause", "audit", "position"])
async def test_a_stream_that_a_router_creates_at_its_first_start_is_named_so(name: str, tmp_path: Path) -> None:
    arguments = {"pause": ["--for", "1m"], "position": ["--consumer", "billing"]}.get(name, [])
    async with place(tmp_path) as here:
        await here.streams.delete_stream("ORDERS")
        route = "orders" if name == "partitions" else "alone"
        result = await here.command(*arguments, route=route, name=name)
        assert result.returncode == 1
        assert "there is no stream 'ORDERS'; create it, or correct its name" in result.stderr
        with (tmp_path / "router.toml").open("a") as file:
            file.write('[[streams]]\nname = "ORDERS"\nsubjects = ["orders.*"]\n')
        result = await here.command(*arguments, route=route, name=name)
        assert result.returncode == 1
        assert "there is no stream 'ORDERS'; a router creates it at its first start" in result.stderr


async def test_a_stream_or_process_that_does_not_exist_yet_is_named(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        result = await here.command(route="alone")
        assert (result.returncode, "route alone has no partitions" in result.stderr) == (2, True)
        result = await here.command()
        assert result.returncode == 1
        assert "the stream 'ORDERS-router' with the partitions does not exist" in result.stderr
        source = stream_info(json.dumps(await here.streams.stream_info("ORDERS")).encode())
        await here.streams.api("STREAM.CREATE.ORDERS-router", config_of("ORDERS-router", source, PARTITIONS))
        found = await here.shown()
        assert found["members"] == {}
        assert found["partitions"][0] == {
            "partition": 0, "member": None, "share": None, "moved": False, "since": None, "lag": None, "unacked": None
        }  # fmt: skip
        assert "4 partitions, 0 processes\n" in (await here.command()).stdout
        result = await here.command("--move", "1", "--to", "5f")
        assert (result.returncode, "no process shares the partitions" in result.stderr) == (2, True)


async def test_a_stream_that_has_the_partitions_itself_is_read(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        await here.streams.delete_stream("ORDERS")
        ((source, destination),) = PARTITIONS.transforms
        transform = {"src": source, "dest": destination}
        await here.streams.create_stream("ORDERS", ["orders.*"], subject_transform=transform)
        await here.streams.create_consumer("ORDERS", "router-2", filter_subject="2.orders.*", ack_policy="explicit")
        found = await here.shown()
        assert found["stream"] == "ORDERS"
        assert [one["lag"] for one in found["partitions"]] == [None, None, 0, None]


async def test_processes_that_run_are_shown_and_a_partition_is_moved_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "ANNOUNCE_EVERY", 0.2)
    monkeypatch.setattr(source, "LOOK_EVERY", 0.2)
    async with place(tmp_path) as here, AsyncExitStack() as stack:
        await here.streams.create_stream("OUT", ["out.>"])
        settings = Settings.load(here.folder / "router.toml", environ={"ROUTER_TRIO_TELEMETRY__LISTEN": ""})
        routers = [await stack.enter_async_context(watched(settings, alone=False)) for _ in range(2)]

        def seen() -> list[Partitions]:
            states = [one.router.routes[0].partitions for one in routers]
            return [one for one in states if one is not None]

        await eventually(lambda: [len(one.led) for one in seen()] == [2, 2])
        await here.streams.publish_many((f"orders.{number}", b"", None) for number in range(40))
        await until_stored(here.streams, "OUT", 80)  # two routes
        first, second = seen()
        found = await here.shown()
        with trio.fail_after(10):  # what each leads is announced from time to time
            while any(one["member"] is None for one in found["partitions"]):
                found = await here.shown()
        assert {one["member"] for one in found["partitions"]} == {first.member, second.member} == {*found["members"]}
        assert all(one["member"] == one["share"] and one["since"] for one in found["partitions"])
        assert [one["lag"] for one in found["partitions"]] == [0] * 4
        moved, *_ = first.led
        found = await here.shown("--move", str(moved), "--to", second.member)
        assert found["partitions"][moved]["member"] in (None, second.member)  # None: nothing was delivered since
        await eventually(lambda: moved in seen()[1].led and moved not in seen()[0].led)
        assert [len(one.led) for one in seen()] == [2, 2], "the others are shared fairly"
        pages = status(routers[1].router, 0.0)["routes"]["orders"]["partitions"]
        assert (pages["count"], pages["members"], pages["led"], pages["wanted"]) == (4, 2, [*seen()[1].led], [])
        assert routers[1].metric("router_route_partitions_led_count", route="orders") == 2
        assert routers[1].metric("router_route_partitions_members_count", route="orders") == 2


async def test_pause_and_resume_are_for_all_partitions(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        await shared_by(here.streams, PARTITIONS, {})
        result = await here.command("--for", "1h", name="pause")
        assert result.returncode == 0, result.stderr
        assert "each of the durables 'router-0' to 'router-3' of stream 'ORDERS-router' is paused" in result.stdout
        infos = [await here.streams.consumer_info("ORDERS-router", f"router-{number}") for number in range(4)]
        assert [one["paused"] for one in infos] == [True] * 4
        assert len({one["config"]["pause_until"] for one in infos}) == 1
        result = await here.command(name="resume")
        assert "is not paused; 0 messages are not delivered yet" in result.stdout, result.stderr
        infos = [await here.streams.consumer_info("ORDERS-router", f"router-{number}") for number in range(4)]
        assert not any(one.get("paused") for one in infos)


@pytest.mark.parametrize(
    ("name", "arguments"), [("audit", ["--repair"]), ("position", ["--consumer", "x"]), ("replay", ["--from", "1"])]
)
async def test_commands_that_compare_ids_refuse_partitions(tmp_path: Path, name: str, arguments: list[str]) -> None:
    async with place(tmp_path) as here:
        result = await here.command(*arguments, name=name)
        assert (result.returncode, "route orders has partitions" in result.stderr) == (2, True), result.stderr


async def test_find_does_not_judge_a_route_with_partitions(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        await here.streams.publish("orders.7")
        result = await here.command("--json", route="orders.7", name="find")
        assert result.returncode == 0, result.stderr
        routes = {one["name"]: one for one in json.loads(result.stdout)["messages"][0]["routes"]}
        assert routes["orders"]["outcome"] == "unknown"
        assert "it has partitions" in json.dumps(routes["orders"])
