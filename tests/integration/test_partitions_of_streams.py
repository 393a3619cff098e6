"""Partitions on a real server: computed as the server does, read back from its answers, and copied in order."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from router_trio.errors import SourceError
from router_trio.link import PartitionedSpec
from router_trio.nats.jetstream.api import stream_info
from router_trio.nats.jetstream.sourced_stream import Partitioned, config_of, differs, partitioned
from router_trio.nats.link import Dialer
from router_trio.protocol import bounded_json
from router_trio.settings import ConnectionSettings
from router_trio.subjects.partitions import Partitioning
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder
from tests.support.server_version import needs_server
from tests.support.servers import nats_server

_WHOLE = needs_server(2, 12, lacks="partition of a subject as a whole")


def subjects_of(pattern: str, random: Random, count: int) -> list[str]:
    """Return subjects that match a pattern, with tokens that are not only ASCII."""

    def word() -> str:
        return "".join(random.choice("abcXYZ019-_äé日") for _ in range(random.randrange(1, 12)))

    def token(one: str) -> str:
        if one == ">":
            return ".".join(word() for _ in range(random.randrange(1, 4)))
        return word() if one == "*" else one

    return [".".join(map(token, pattern.split("."))) for _ in range(count)]


async def found(jetstream: JetStream, name: str) -> Partitioned | None:
    answer = bounded_json.read(json.dumps(await jetstream.stream_info(name)).encode(), 1_000_000)
    return partitioned(answer.required("config"), answer)


@pytest.mark.parametrize(
    ("pattern", "by"),
    [
        ("orders.*.*", (1,)),
        ("returns.*.*.>", (2, 1)),
        pytest.param("x.>", (), marks=_WHOLE),
        pytest.param("y.*", (), marks=_WHOLE),
        pytest.param("literal.subject", (), marks=_WHOLE),
    ],
)
async def test_partitions_are_those_that_the_server_computes(tmp_path: Path, pattern: str, by: tuple[int, ...]) -> None:
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        jetstream = JetStream(client)
        # With the last stream, the server removes its directory a moment later, perhaps under the next new stream.
        await jetstream.create_stream("STAYS", ["stays"])
        for count in (1, 3, 16, 1000):
            partitions = Partitioning(count, by, (pattern,))
            ((source, destination),) = partitions.transforms
            # A server may find the messages of a deleted stream when one of its name is created at once.
            name = f"S{count}"
            await jetstream.create_stream(name, [pattern], subject_transform={"src": source, "dest": destination})
            assert await found(jetstream, name) == Partitioned(partitions)
            subjects = subjects_of(pattern, Random(count), 200)
            await jetstream.publish_many([(one, b"", None) for one in subjects])
            stored = [message.subject for message in await jetstream.stream_messages(name)]
            assert stored == [f"{partitions.partition_of(one)}.{one}" for one in subjects]
            assert [one.partition(".")[2] for one in stored] == subjects
            await jetstream.delete_stream(name)


async def copied(jetstream: JetStream, partitions: Partitioning, deliver: str | int = "all", **config: Any) -> None:
    """Create the copy of ORDERS with its partitions."""
    source = stream_info(json.dumps(await jetstream.stream_info("ORDERS")).encode())
    await jetstream.api("STREAM.CREATE.COPY", config_of("COPY", source, partitions, deliver) | config)


async def test_a_stream_is_copied_in_order_with_the_partitions_in_front(tmp_path: Path) -> None:
    partitions = Partitioning(16, (1,), ("orders.*.*",))
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        jetstream = JetStream(client)
        await jetstream.create_stream("ORDERS", ["orders.>", "others"], max_msgs=5000)
        await jetstream.publish_many([(f"orders.{number % 50}.new", b"%d" % number, None) for number in range(300)])
        await jetstream.publish("others")
        await copied(jetstream, partitions)
        await jetstream.publish_many(
            [(f"orders.{number % 50}.new", b"%d" % number, None) for number in range(300, 600)]
        )

        async def all_there() -> bool:
            return bool((await jetstream.stream_info("COPY"))["state"]["messages"] == 600)

        await eventually(all_there)
        messages = await jetstream.stream_messages("COPY")
        assert [int(message.payload) for message in messages] == list(range(600))
        for message in messages:
            token, _, subject = message.subject.partition(".")
            assert int(token) == partitions.partition_of(subject)
        copy = await found(jetstream, "COPY")
        assert copy == Partitioned(partitions, "ORDERS", sequence=601, lag=0, heard_at=copy.heard_at if copy else 0)
        assert differs("COPY", partitions, "ORDERS", copy) is None
        assert (await jetstream.stream_info("COPY"))["config"]["max_msgs"] == 5000


@pytest.mark.parametrize(("deliver", "first"), [("all", 0), ("new", 100), (41, 40)])
async def test_a_copy_begins_where_the_route_does(tmp_path: Path, deliver: str | int, first: int) -> None:
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        jetstream = JetStream(client)
        await jetstream.create_stream("ORDERS", ["orders.*"])
        await jetstream.publish_many([(f"orders.{number}", b"%d" % number, None) for number in range(100)])
        await copied(jetstream, Partitioning(4, (1,), ("orders.*",)), deliver)
        await jetstream.publish("orders.x", b"100")

        async def all_there() -> bool:
            return bool((await jetstream.stream_info("COPY"))["state"]["messages"] == 101 - first)

        await eventually(all_there)
        assert [int(one.payload) for one in await jetstream.stream_messages("COPY")] == list(range(first, 101))


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_an_empty_copy_goes_on_where_it_was_after_a_crash_of_the_server(tmp_path: Path, retention: str) -> None:
    # Nothing in the copy shows then what was copied before.
    async with nats_server(tmp_path) as server:
        async with connect(server.url) as client:
            jetstream = JetStream(client)
            await jetstream.create_stream("ORDERS", ["orders.*"])
            await copied(jetstream, Partitioning(4, (1,), ("orders.*",)), retention=retention)
            await jetstream.publish_many([(f"orders.{number}", b"", None) for number in range(100)])

            async def all_there() -> bool:
                return bool((await jetstream.stream_info("COPY"))["state"]["messages"] == 100)

            await eventually(all_there)
            await jetstream.api("STREAM.PURGE.COPY")
        await server.kill()
        await server.restart()
        async with connect(server.url) as client:
            jetstream = JetStream(client)
            await jetstream.publish("orders.x", b"next")

            async def one_more() -> bool:
                return bool((await jetstream.stream_info("COPY"))["state"]["last_seq"] > 100)

            await eventually(one_more, 20)
            (message,) = await jetstream.stream_messages("COPY")
            assert (message.payload, message.sequence) == (b"next", 101)


async def test_the_work_queue_of_an_elastic_group_is_refused_and_a_static_group_is_joined(tmp_path: Path) -> None:
    """The configurations are those that `CreateElastic` and the documentation of Orbit make."""
    partitions = Partitioning(4, (1,), ("orders.*",))
    transforms = [{"src": source, "dest": destination} for source, destination in partitions.transforms]
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        jetstream = JetStream(client)
        await jetstream.create_stream("ORDERS", ["orders.*"])
        elastic = {
            "name": "ORDERS-group",
            "retention": "workqueue",
            "discard": "new",
            "allow_direct": True,
            "sources": [{"name": "ORDERS", "subject_transforms": transforms}],
        }
        await jetstream.api("STREAM.CREATE.ORDERS-group", elastic)
        await jetstream.create_stream(
            "STATIC", ["static.*"], subject_transform={"src": "", "dest": "{{partition(4)}}.>"}
        )
        settings = ConnectionSettings(servers=[server.url])
        async with Dialer(settings, "main")(server.url, INBOX, Recorder()) as link:
            wanted = PartitionedSpec("ORDERS", "ORDERS-group", partitions)
            with pytest.raises(SourceError, match="elastic consumer group of Orbit") as caught:
                await link.ensure_partitioned(wanted)
            assert caught.value.reason == "partitions_differ"
            joined = await link.ensure_partitioned(PartitionedSpec("STATIC", "STATIC-group", Partitioning(4)))
            assert (joined.name, joined.source) == ("STATIC", "")
