"""A route with partitions whose bucket, copy or server fails: what is led goes on, and the cause is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from router_trio import Router, Settings
from router_trio.embedded import HOST
from router_trio.events import RoutePartitionGivenUp, RoutePartitionLost, RoutePartitionsUnled
from router_trio.nats.jetstream.members import STREAM, bucket_config
from router_trio.routing.stream.partitions import source as partitions_source
from router_trio.routing.stream.partitions import unled
from tests.integration.readiness import Place, deny, place, users
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.server_version import needs_server
from tests.support.settings import stream_route

pytestmark = needs_server(2, 11, lacks="pinned consumers")

ROUTE = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", partitions=4, partition_by=[1])


async def leads_all(at: Place) -> None:
    """Wait until the router leads every partition, and has routed a message of each."""
    await at.until_ready()
    for number in range(12):
        assert await at.probe(subject=f"in.{number}")
    await eventually(lambda: at.live.routes[0].partitions is not None and led(at) == 4)


def led(at: Place) -> int:
    partitions = at.live.routes[0].partitions
    return 0 if partitions is None else len(partitions.led)


def moved(at: Place) -> list[object]:
    """Return the events of partitions that were given up or lost."""
    return [one for one in at.watch.events if isinstance(one, RoutePartitionGivenUp | RoutePartitionLost)]


@pytest.mark.parametrize(
    ("denied", "reason"),
    [
        (f"$JS.API.STREAM.INFO.{STREAM}", "the processes that share the partitions are not known"),
        ("$KV.router-trio-members.>", "this process can't announce itself"),
    ],
)
async def test_led_partitions_go_on_while_the_bucket_can_not_be_used(tmp_path: Path, denied: str, reason: str) -> None:
    async with place(tmp_path, ROUTE) as at:
        await leads_all(at)
        await deny(denied)(at)
        await at.until_unready(reason)
        assert "grant this user the permission" in at.answer[1][0]["reason"]
        for number in range(12):
            assert await at.probe(subject=f"in.{number}")
        assert led(at) == 4
        await deny()(at)
        await at.until_ready()
        assert moved(at) == []


async def test_a_bucket_that_is_deleted_is_created_again_and_no_partition_moves(tmp_path: Path) -> None:
    async with place(tmp_path, ROUTE) as at:
        await leads_all(at)
        await at.streams.delete_stream(STREAM)

        async def is_back() -> bool:
            names = (await at.streams.api("STREAM.NAMES"))["streams"]
            return STREAM in names and (await at.streams.stream_info(STREAM))["state"]["messages"] == 1

        await eventually(is_back, 10)
        for number in range(12):
            assert await at.probe(subject=f"in.{number}")
        await at.until_ready()
        assert moved(at) == []


async def test_a_bucket_whose_keys_stay_is_named_with_its_cure(tmp_path: Path) -> None:
    async def create(streams: JetStream) -> None:
        await streams.api(f"STREAM.CREATE.{STREAM}", bucket_config(1, "memory") | {"allow_msg_ttl": False})

    async with place(tmp_path, ROUTE, before=create) as at:
        await at.until_unready(f"nats stream edit {STREAM} --allow-msg-ttl")
        await at.streams.edit_stream(STREAM, allow_msg_ttl=True)
        await leads_all(at)


async def test_a_copy_that_is_changed_under_a_route_stops_it_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions_source, "LOOK_AT_STREAM_EVERY", 0.3)
    async with place(tmp_path, ROUTE) as at:
        await leads_all(at)
        config = (await at.streams.stream_info("IN-router"))["config"]
        transform = {"src": "in.*", "dest": "{{partition(7,1)}}.in.{{wildcard(1)}}"}
        source = {"name": "IN", "subject_transforms": [transform], "opt_start_seq": 13}
        await at.streams.api("STREAM.UPDATE.IN-router", config | {"sources": [source]})
        await at.until_unready("it has 7 partitions, the route 4 partitions")
        assert "`router-trio partitions CONFIG ROUTE --change --apply`" in at.answer[1][0]["reason"]
        await at.streams.api("STREAM.UPDATE.IN-router", config)
        await at.until_ready()


async def test_a_copy_that_drops_messages_is_refused(tmp_path: Path) -> None:
    async with place(tmp_path, ROUTE) as at:
        await leads_all(at)
        await at.live.reload(at.settings.model_copy(update={"routes": []}))
        await at.streams.edit_stream("IN-router", duplicate_window=120 * 10**9)
        await at.live.reload(at.settings)
        await at.until_unready("nats stream edit IN-router --dupe-window 0s")
        await at.streams.edit_stream("IN-router", duplicate_window=0)
        await leads_all(at)


async def test_messages_with_the_same_id_are_routed_as_often_as_the_source_has_stored_them(tmp_path: Path) -> None:
    async with place(tmp_path, ROUTE) as at:
        await at.until_ready()
        await at.streams.edit_stream("IN", duplicate_window=100_000_000)
        for number in range(3):
            await at.streams.publish("in.x", b"%d" % number, [("Nats-Msg-Id", "same")])
            await trio.sleep(0.2)
        await eventually(lambda: at.live.routes[0].settled["routed"] == 3, 10)
        assert await at.stored() == [b"0", b"1", b"2"]


FORGED = "0" * 15 + "1"


async def forge(streams: JetStream, *ids: str, ttl: str = "999999999s") -> None:
    """Write announcements of members that do not exist, as anybody can who may write to the bucket."""
    for one in ids:
        await streams.publish(f"$KV.router-trio-members.IN.router.{one}", b"{}", [("Nats-TTL", ttl)])


async def test_messages_are_routed_although_a_forged_member_has_half_of_the_partitions(tmp_path: Path) -> None:
    async def before(streams: JetStream) -> None:
        await streams.api(f"STREAM.CREATE.{STREAM}", bucket_config(1, "memory"))
        await forge(streams, FORGED)

    async with place(tmp_path, ROUTE, before=before) as at:
        for number in range(40):
            await at.streams.publish(f"in.{number}", b"%d" % number)
        await at.until_unready("no process leads partition", 20)
        assert FORGED in at.answer[1][0]["reason"]
        await eventually(lambda: at.live.routes[0].settled["routed"] == 40, 20)
        await at.until_ready()
        warned = [one for one in at.watch.events if isinstance(one, RoutePartitionsUnled)]
        assert warned
        assert all(FORGED in one.detail for one in warned)
        assert sorted(await at.stored(), key=int) == [b"%d" % number for number in range(40)]


async def test_messages_are_routed_although_many_members_are_forged_while_it_runs(tmp_path: Path) -> None:
    async with place(tmp_path, ROUTE) as at:
        await leads_all(at)
        await forge(at.streams, *(f"{number:016x}" for number in range(300)))
        await eventually(lambda: led(at) < 4, 10)
        for number in range(40):
            await at.streams.publish(f"in.{number}", b"%d" % number)
        await at.until_unready("no process leads partition", 20)
        await eventually(lambda: at.live.routes[0].settled["routed"] == 52, 30)
        await at.until_ready()


async def test_a_process_routes_although_more_members_are_forged_than_an_answer_has_room_for(tmp_path: Path) -> None:
    async def before(streams: JetStream) -> None:
        await streams.api(f"STREAM.CREATE.{STREAM}", bucket_config(1, "memory"))
        subject = "$KV.router-trio-members.IN.router."
        await streams.publish_many(
            (f"{subject}{number:016x}", b"{}", [("Nats-TTL", "900s")]) for number in range(20_000)
        )

    async with place(tmp_path, ROUTE, before=before) as at:
        for number in range(40):
            await at.streams.publish(f"in.{number}", b"%d" % number)
        await at.until_unready("the processes that share the partitions are not known")
        await eventually(lambda: at.live.routes[0].settled["routed"] == 40, 30)
        await at.streams.api(f"STREAM.PURGE.{STREAM}")
        await at.until_ready()
        assert led(at) == 4


def slow_users(*, deny: Sequence[str] = ()) -> str:
    """Return the configuration of a server with another user `slow`, who may not publish to some subjects."""
    slow = f'  {{ user: slow, password: "secret", permissions: {{ publish: {{ deny: {json.dumps(list(deny))} }} }} }}'
    return users().replace("users: [", f"users: [\n{slow}")


async def test_a_member_that_could_not_lead_for_a_while_has_its_share_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unled, "SHORTEST", 5.0)
    async with place(tmp_path, ROUTE, config=slow_users(deny=["$JS.API.CONSUMER.MSG.NEXT.>"])) as at:
        await leads_all(at)
        url = f"nats://slow:secret@{HOST}:{at.server.port}"
        settings = Settings(telemetry={"listen": ""}, connections={"main": {"servers": [url]}}, routes=[ROUTE])
        async with Router(settings, log=False).open() as live:
            await eventually(lambda: led(at) == 2, 10)
            for number in range(40):
                await at.streams.publish(f"in.{number}", b"%d" % number)
            await at.until_unready("no process leads partition", 20)
            await eventually(lambda: at.live.routes[0].settled["routed"] == 52, 20)
            assert led(at) == 4
            await at.server.reload(slow_users())

            async def shared() -> bool:
                for number in range(12):
                    await at.streams.publish(f"in.{number}", b"again")
                partitions = live.routes[0].partitions
                return led(at) == 2 and partitions is not None and len(partitions.led) == 2

            await eventually(shared, 30)
            await at.until_ready()
