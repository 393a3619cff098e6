"""`router-trio partitions --change` on real servers: nothing is lost, doubled or overtaken, however it is interrupted.

The processes of the route are played by a reader that settles what its durables deliver.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.cli.partitions_change import plan
from router_trio.errors import SourceError
from router_trio.link import PartitionedSpec
from router_trio.nats import change_lock, partitions_change
from router_trio.nats.change_lock import ChangeLock
from router_trio.nats.command_link import CommandLink, open_links
from router_trio.nats.jetstream.api import stream_info
from router_trio.nats.jetstream.sourced_stream import config_of
from router_trio.nats.partitions_change import PartitionsChange
from router_trio.routing.stream.consumer.limits import consumer_spec
from router_trio.settings import Settings
from router_trio.subjects.partitions import Partitioning
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import cluster, nats_server

pytestmark = needs_server(2, 11, lacks="pausing consumers")

PATTERN = "orders.*.*"
KEYS = 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions_change, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(partitions_change, "STORED_WITHIN", 0.1)
    monkeypatch.setattr(partitions_change, "NOTICED_WITHIN", 0.3)


def partitions_of(count: int, pattern: str = PATTERN) -> Partitioning:
    return Partitioning(count, (1,), (pattern,))


@dataclass
class Place:
    """A server with the stream ORDERS, and a reader of the partitions."""

    streams: JetStream
    link: CommandLink
    url: str
    stream: str
    routed: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """The numbers of the settled messages of each key, in order."""
    published: int = 0
    said: list[str] = field(default_factory=list)

    async def publish(self, count: int) -> None:
        numbers = range(self.published, self.published + count)
        self.published += count
        await self.streams.publish_many([(f"orders.{n % KEYS}.new", b"%d" % n, None) for n in numbers])

    def change(self, count: int, pattern: str = PATTERN) -> PartitionsChange:
        keys = {"stream": "ORDERS", "durable": "router", "filter": pattern, "partitions": count, "partition_by": [1]}
        route = {"name": "r", "from": keys, "to": [{"subject": "out"}]}
        source = Settings(connections={"main": {"servers": [self.url]}}, routes=[route]).routes[0].source
        return PartitionsChange(self.link, source, consumer_spec(source))

    async def apply(self, count: int, pattern: str = PATTERN) -> None:
        with trio.fail_after(20):
            await self.change(count, pattern).apply(self.said.append)

    async def create_durables(self, partitions: Partitioning, *numbers: int) -> None:
        for number in numbers or range(partitions.count):
            group = {"priority_groups": ["router"], "priority_policy": "pinned_client", "priority_timeout": 5 * 10**8}
            filters = partitions.filters(number)[0]
            await self.streams.create_consumer(self.stream, f"router-{number}", filter_subject=filters, **group)

    async def read(self, count: int) -> None:
        """Settle what the durables of the old partitions deliver, as the processes of the route do, until cancelled."""
        client = self.streams.client
        replies = await client.subscribe(inbox := client.new_inbox())
        number, pins = 0, dict[int, str]()
        while True:
            with trio.CancelScope(shield=True):  # what is delivered is settled
                request = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.router-{number}"
                pull = {"batch": 1, "no_wait": True, "group": "router"} | (
                    {"id": pins[number]} if number in pins else {}
                )
                await client.publish(request, json.dumps(pull).encode(), None, inbox)
                try:
                    message = await replies.next(2.0)
                except trio.TooSlowError:  # the durable was deleted when the request arrived
                    number = (number + 1) % count
                    continue
                if message.reply is not None:
                    self.routed[message.subject.split(".")[2]].append(int(message.payload))
                    await client.publish(message.reply, b"+ACK")
            if (pin := dict(message.headers).get("Nats-Pin-Id")) is not None:
                pins[number] = pin
            if message.status == "423":
                pins.pop(number, None)
            if message.status:
                number = (number + 1) % count
                await trio.sleep(0.01)
            else:
                await trio.lowlevel.checkpoint()

    async def until_copied(self) -> None:
        with trio.fail_after(10):
            while (await self.streams.stream_info(self.stream))["state"]["messages"] < self.published:
                await trio.sleep(0.02)

    async def until_all_is_routed(self) -> None:
        with trio.move_on_after(10):
            while sum(map(len, self.routed.values())) < self.published:
                await trio.sleep(0.05)
        assert self.routed == {str(key): [*range(key, self.published, KEYS)] for key in range(KEYS)}


@asynccontextmanager
async def servers(tmp_path: Path, count: int) -> AsyncIterator[str]:
    """Yield the URL of a server, or of one of a cluster."""
    if count == 1:
        async with nats_server(tmp_path) as server:
            yield server.url
    else:
        async with cluster(tmp_path, count) as group:
            yield group.urls[0]


@asynccontextmanager
async def place(tmp_path: Path, *, own: bool = False, replicas: int = 1, **config: Any) -> AsyncIterator[Place]:
    """Yield a place with 4 partitions, which ORDERS has by its `own` transform, or a copy of it with this `config`."""
    partitions = partitions_of(4)
    ((source, destination),) = partitions.transforms
    transform = {"subject_transform": {"src": source, "dest": destination}} if own else {}
    async with servers(tmp_path, replicas) as url, connect(url) as client:
        streams = JetStream(client)
        await streams.create_stream("ORDERS", [PATTERN], num_replicas=replicas, **transform)
        if not own:
            info = stream_info(json.dumps(await streams.stream_info("ORDERS")).encode())
            copy = config_of("ORDERS-router", info, partitions) | config
            await streams.api("STREAM.CREATE.ORDERS-router", copy)
        settings = Settings(connections={"main": {"servers": [url]}})
        async with open_links(settings, "test", ["main"]) as links:
            at = Place(streams, links["main"], url, "ORDERS" if own else "ORDERS-router")
            await at.create_durables(partitions)
            yield at


@asynccontextmanager
async def reading(at: Place, count: int = 4) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.read, count)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def publishing(at: Place) -> AsyncIterator[None]:
    """Publish all the time."""

    async def publish() -> None:
        while True:
            with trio.CancelScope(shield=True):
                await at.publish(7)
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        yield
        nursery.cancel_scope.cancel()


RETENTIONS = ("limits", "workqueue")


@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize(
    ("count", "replicas"), [(7, 1), (2, 1), pytest.param(7, 3, marks=[pytest.mark.nightly, pytest.mark.timeout(120)])]
)
async def test_nothing_is_lost_or_overtaken_while_messages_are_published(
    tmp_path: Path, retention: str, count: int, replicas: int
) -> None:
    async with place(tmp_path, retention=retention, replicas=replicas) as at:
        await at.publish(200)
        async with publishing(at):
            async with reading(at):
                await at.apply(count)
            await trio.sleep(0.2)
        await at.create_durables(partitions_of(count), *range(4, count))
        async with reading(at, count):
            await at.until_all_is_routed()
        copy = await at.streams.stream_info("ORDERS-router")
        assert copy["config"]["retention"] == retention
        assert copy["config"]["metadata"]["router-trio.durable"] == "router"
        assert "router-trio.changing" not in copy["config"]["metadata"]
        names = (await at.streams.api("CONSUMER.NAMES.ORDERS-router"))["consumers"]
        assert sorted(names) == [f"router-{n}" for n in range(count)]
        assert (await at.change(count).standing()).is_done


@pytest.mark.parametrize(
    ("retention", "steps"),
    [*(("limits", n) for n in range(1, 6)), *(("workqueue", n) for n in (1, 3, 9, 10, 12, 20, 21))],
)
async def test_a_change_that_is_interrupted_anywhere_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retention: str, steps: int
) -> None:
    class Interrupted(Exception):
        """The command was killed."""

    async with place(tmp_path, retention=retention) as at, reading(at):
        await at.publish(100)
        link, requests = at.link, 0
        send = link.requests.send

        def changing(subject: bytes, *rest: Any, **more: Any) -> Any:
            nonlocal requests
            if any(word in subject for word in (b"UPDATE", b"PURGE", b"DELETE", b"PAUSE", b"CREATE")):
                requests += 1
                if requests == steps:
                    raise Interrupted
            return send(subject, *rest, **more)

        monkeypatch.setattr(link.requests, "send", changing)
        with contextlib.suppress(Interrupted):
            await at.apply(3)
        assert requests >= steps, f"only {requests} requests change something"
        monkeypatch.setattr(link.requests, "send", send)
        await at.publish(50)
        await at.apply(3)
        await at.until_all_is_routed()


@pytest.mark.parametrize("own", [False, True], ids=["copy", "own"])
async def test_of_two_commands_at_once_one_changes_and_the_other_is_refused(tmp_path: Path, own: bool) -> None:
    async with place(tmp_path, own=own) as at, reading(at):
        await at.publish(200)
        ended: dict[int, str] = {}

        async def apply(count: int) -> None:
            try:
                await at.change(count).apply(at.said.append)
            except SourceError as error:
                ended[count] = str(error)
            else:
                ended[count] = "done"

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for count in (2, 3):
                    nursery.start_soon(apply, count)
        (done,) = (count for count, how in ended.items() if how == "done")
        (refused,) = (how for how in ended.values() if how != "done")
        assert "changed by another command" in refused
        assert (await at.change(done).standing()).is_done
        await at.publish(50)
        await at.until_all_is_routed()


async def test_a_command_is_refused_if_another_one_has_ended_its_change_meanwhile(tmp_path: Path) -> None:
    """It was started for the partitions that there were before."""
    async with place(tmp_path) as at:
        first, second = (ChangeLock(at.link, "ORDERS", "router") for _ in range(2))
        await first.take()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def take() -> None:
                with pytest.raises(SourceError, match="changed by another command"):
                    await second.take()

            await trio.sleep(change_lock.LOOK_EVERY / 2)  # the second one has looked
            await first.free()


async def test_the_lock_of_a_command_that_was_killed_is_free_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_lock, "HELD_FOR", 2)
    async with place(tmp_path) as at, reading(at):
        await ChangeLock(at.link, "ORDERS", "router").take()
        await at.publish(20)
        await at.apply(3)
        await at.until_all_is_routed()


async def test_a_command_that_was_suspended_changes_nothing_when_another_one_has_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_lock, "HELD_FOR", 1)
    monkeypatch.setattr(change_lock, "RENEW_EVERY", 0.1)
    async with place(tmp_path) as at:
        suspended = ChangeLock(at.link, "ORDERS", "router")
        await suspended.take()
        await trio.sleep(change_lock.HELD_FOR + 0.1)
        await ChangeLock(at.link, "ORDERS", "router").take()
        with pytest.raises(SourceError, match="interrupted for too long"):
            await suspended.keep()


async def test_a_copy_from_which_everything_was_deleted_goes_on_where_it_was(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        async with reading(at):
            await at.publish(100)
            await at.until_all_is_routed()
        await at.streams.api("STREAM.PURGE.ORDERS-router")
        await at.apply(4, "orders.*.>")  # another filter
        await at.publish(50)
        await at.create_durables(partitions_of(4, "orders.*.>"))
        async with reading(at):
            await at.until_all_is_routed()


async def test_messages_of_a_partition_that_no_process_has_read_yet_are_waited_for(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        await at.streams.delete_consumer("ORDERS-router", "router-1")
        await at.publish(100)
        await at.until_copied()
        async with reading(at, 1), trio.open_nursery() as nursery:
            nursery.start_soon(at.apply, 8)
            await trio.sleep(1.0)
            assert (await at.change(8).standing()).found.changing is not None, "it waits"
            await at.create_durables(partitions_of(4), 1)
            nursery.start_soon(at.read, 4)
            with trio.fail_after(10):
                while (await at.change(8).standing()).found.changing is not None:
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()


async def test_a_stream_with_a_transform_of_its_own_changes_between_two_messages(tmp_path: Path) -> None:
    async with place(tmp_path, own=True) as at:
        await at.publish(200)
        async with reading(at):
            await at.apply(7)
        assert not any("warning" in one for one in at.said)
        await at.publish(100)
        async with reading(at, 7):
            await at.until_all_is_routed()
            await at.apply(2)
        # The durables of partitions that come back get nothing of what they had in the stream before.
        await at.publish(100)
        async with reading(at, 2):
            await at.until_all_is_routed()
            await at.apply(7)
        await at.publish(100)
        async with reading(at, 7):
            await at.until_all_is_routed()


async def test_the_plan_changes_nothing(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        await at.publish(60)
        await at.until_copied()
        now = await at.change(2).standing()
        assert list(plan(now))[:-2] == [
            "wanted: 2 partitions of orders.*.*, by wildcard 1",
            "1. ORDERS-router stops to copy ORDERS; what is published from then on waits in ORDERS",
            "2. settle what ORDERS-router has, 60 messages now",
            "3. empty ORDERS-router, whose messages are all settled then",
            "4. ORDERS-router copies ORDERS again, from the message at which it stopped, with the new partitions",
            "5. delete 2 durables that do not fit the new partitions",
        ]
        assert (await at.change(4).standing()).is_done


async def test_processes_with_other_partitions_are_refused_while_they_are_changed(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        await at.publish(10)
        await at.until_copied()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at.apply, 8)
            link = at.link.link
            wanted = PartitionedSpec("ORDERS", "ORDERS-router", partitions_of(4))
            with trio.fail_after(5):
                while (await at.change(8).standing()).found.changing is None:
                    await trio.sleep(0.05)
            assert (await link.ensure_partitioned(wanted)).source == "ORDERS", "the old ones go on"
            with pytest.raises(SourceError, match="8 partitions; it is being changed now"):
                await link.ensure_partitioned(replace(wanted, partitioning=partitions_of(8)))
            nursery.start_soon(at.read, 4)
            with trio.fail_after(5):
                while not (await at.change(8).standing()).is_done:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert not (await link.ensure_partitioned(replace(wanted, partitioning=partitions_of(8)))).created
        with pytest.raises(SourceError, match="it has 8 partitions, the route 4 partitions") as caught:
            await link.ensure_partitioned(wanted)
        assert caught.value.reason == "partitions_differ"
