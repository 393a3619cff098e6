"""The stream that has the partitions of another one: its configuration, and what an existing one must be like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import trio

from router_trio.errors import SourceError
from router_trio.link import Group, PartitionedSpec, PartitionedStream
from router_trio.nats.info import ServerInfo
from router_trio.nats.jetstream.api import Api, ApiError, StreamInfo, stream_info
from router_trio.nats.jetstream.members import members_of
from router_trio.nats.jetstream.sourced_stream import (
    CHANGING,
    Changing,
    Partitioned,
    config_of,
    differs,
    ensure_partitioned,
    partitioned,
    unsuitable,
)
from router_trio.nats.jetstream.streams import Lookups
from router_trio.protocol import bounded_json
from router_trio.protocol.bounded_json import AnswerError
from router_trio.protocol.stream_config import StreamConfig
from router_trio.subjects.partitions import Partitioning

WANTED = Partitioning(16, (1,), ("orders.*.*",))
CHANGE = "correct the route, or change the stream with `router-trio partitions CONFIG ROUTE --change --apply`"
TRANSFORM = {"src": "orders.*.*", "dest": "{{partition(16,1)}}.orders.{{wildcard(1)}}.{{wildcard(2)}}"}


def answer(config: dict[str, Any], **more: Any) -> bytes:
    state = {"messages": 7, "bytes": 1, "first_seq": 1, "last_seq": 41, "consumer_count": 0}
    body = {"config": {"name": "ORDERS", **config}, "created": "2026-11-29T10:00:00Z", "state": state, **more}
    return json.dumps(body).encode()


def info(**config: Any) -> StreamInfo:
    return stream_info(answer({"subjects": ["orders.>"], **config}))


def found(config: dict[str, Any], **more: Any) -> Partitioned | None:
    whole = bounded_json.read(answer(config, **more), 100_000)
    return partitioned(whole.required("config"), whole)


def test_the_copy_has_the_limits_of_its_source() -> None:
    source = info(num_replicas=3, max_age=3600 * 10**9, max_msgs=1000, max_bytes=10**6, discard="new", storage="memory")
    assert config_of("ORDERS-router", source, WANTED) == {
        "name": "ORDERS-router",
        "sources": [{"name": "ORDERS", "subject_transforms": [TRANSFORM]}],
        "metadata": {"router-trio.durable": "router"},
        "storage": "memory",
        "retention": "limits",
        "num_replicas": 3,
        "max_age": 3600 * 10**9,
        "max_bytes": 10**6,
        "max_msgs": 1000,
        "max_msgs_per_subject": -1,
        "discard": "old",
    }


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
def test_the_copy_of_a_stream_that_deletes_what_is_acked_does_so_too(retention: str) -> None:
    assert config_of("X", info(retention=retention), WANTED)["retention"] == "workqueue"


def test_limits_of_the_configuration_replace_those_of_the_source() -> None:
    declared = StreamConfig("ORDERS-router", (), retention="workqueue", replicas=1, max_age=60.0)
    config = config_of("ORDERS-router", info(num_replicas=3), WANTED, declared=declared)
    assert (config["retention"], config["num_replicas"], config["max_age"]) == ("workqueue", 1, 60 * 10**9)


@pytest.mark.parametrize(
    ("deliver", "start"),
    [
        ("all", {}),
        ("new", {"opt_start_seq": 42}),
        (7, {"opt_start_seq": 7}),
        ("2026-01-01T00:00:00Z", {"opt_start_time": "2026-01-01T00:00:00Z"}),
    ],
)
def test_the_copy_begins_where_the_route_does(deliver: str | int, start: dict[str, Any]) -> None:
    sources = config_of("X", info(), WANTED, deliver)["sources"]
    assert sources == [{"name": "ORDERS", "subject_transforms": [TRANSFORM], **start}]


OF_SOURCE = {"sources": [{"name": "ORDERS", "subject_transforms": [TRANSFORM]}]}


def test_it_is_known_when_a_copy_has_heard_of_its_source() -> None:
    def heard_at(active: int, **more: Any) -> int:
        copy = found(OF_SOURCE, sources=[{"name": "ORDERS", "lag": 0, "active": active}], **more)
        assert copy is not None
        return copy.heard_at

    assert heard_at(2 * 10**9, ts="2026-01-01T00:00:02Z") == 1_767_225_600 * 10**9
    assert heard_at(-1, ts="2026-01-01T00:00:02Z") == 0, "never"
    assert heard_at(2 * 10**9) == 0, "a server that does not report its time"


@pytest.mark.parametrize(
    ("config", "of_others"),
    [
        ({"retention": "workqueue", "discard": "new"}, True),
        ({"retention": "workqueue", "discard": "old"}, False),
        ({"retention": "limits", "discard": "new"}, False),
        ({"retention": "workqueue", "discard": "new", "metadata": {"router-trio.durable": "router"}}, False),
    ],
)
def test_the_work_queue_of_an_elastic_group_is_recognized(config: dict[str, Any], of_others: bool) -> None:
    copy = found(OF_SOURCE | config)
    assert copy is not None
    assert copy.of_others is of_others


def test_a_copy_whose_partitions_are_being_changed_has_the_old_ones() -> None:
    change = Changing("ORDERS", ((TRANSFORM["src"], TRANSFORM["dest"]),), 40, 43)
    copy = found({"subjects": ["ORDERS-router"], "metadata": {CHANGING: change.as_text()}})
    assert copy == Partitioned(WANTED, "ORDERS", 40, changing=change)
    assert differs("R", WANTED, "ORDERS", copy) is None
    assert differs("R", replace(WANTED, count=8), "ORDERS", copy) == (
        "the stream 'R' has other partitions: it has 16 partitions, the route 8 partitions; it is being changed now"
        f"; {CHANGE}"
    )
    # A record that was forgotten has no effect on a copy that copies again.
    assert found(OF_SOURCE | {"metadata": {CHANGING: change.as_text()}}) == Partitioned(WANTED, "ORDERS")


@pytest.mark.parametrize(
    "record", ["x", "[]", "{}", '{"transforms": [1]}', '{"transforms": [["a", "b"]], "source": 7}', "[" * 40_000]
)
def test_a_malformed_record_of_a_change_is_refused(record: str) -> None:
    with pytest.raises(AnswerError):
        found({"subjects": ["R"], "metadata": {CHANGING: record}})


def test_partitions_are_read_from_the_source_of_a_copy() -> None:
    config = {"sources": [{"name": "ORDERS", "subject_transforms": [TRANSFORM]}]}
    assert found(config, sources=[{"name": "ORDERS", "lag": 3, "seq": 38}]) == Partitioned(WANTED, "ORDERS", 38, 3)
    assert found(config) == Partitioned(WANTED, "ORDERS")


@pytest.mark.parametrize("subjects", [["orders.*.*"], ["orders.*.new", "orders.*.paid"]])
def test_partitions_are_read_from_a_streams_own_transform(subjects: list[str]) -> None:
    assert found({"subjects": subjects, "subject_transform": TRANSFORM}) == Partitioned(WANTED)


@pytest.mark.parametrize(
    "config",
    [
        {"subjects": ["orders.>"]},
        {"subjects": ["orders.>"], "subject_transform": TRANSFORM},
        {"subjects": ["orders.*.*"], "subject_transform": {"src": "orders.*.*", "dest": "x.$1.$2"}},
        {"subjects": ["orders.*.*"], "subject_transform": TRANSFORM, "sources": [{"name": "A"}]},
        {"sources": [{"name": "ORDERS"}]},
        {"sources": [{"name": "ORDERS", "subject_transforms": [TRANSFORM]}, {"name": "OTHER"}]},
        {"sources": [{"name": "ORDERS", "subject_transforms": [TRANSFORM]}], "subjects": ["more.>"]},
        {"mirror": {"name": "ORDERS"}},
    ],
)
def test_a_stream_with_messages_that_have_no_partition_has_none(config: dict[str, Any]) -> None:
    assert found(config) is None


def test_an_existing_stream_is_refused_with_the_difference() -> None:
    assert differs("R", WANTED, "ORDERS", Partitioned(WANTED, "ORDERS")) is None
    assert differs("R", WANTED, "ORDERS", None) == (
        "the stream 'R' exists, and does not put a partition in front of its subjects; use another `durable`"
    )
    assert differs("R", WANTED, "ORDERS", Partitioned(WANTED, "OTHER")) == (
        "the stream 'R' exists and sources 'OTHER'; 'ORDERS' is needed; use another `durable`"
    )
    other = Partitioning(8, (1,), ("orders.*.*",))
    assert differs("R", WANTED, "ORDERS", Partitioned(other, "ORDERS")) == (
        f"the stream 'R' has other partitions: it has 8 partitions, the route 16 partitions; {CHANGE}"
    )
    # A copy is made for one route; a stream with partitions of its own may have more than the route reads.
    wider = Partitioning(16, (1,), ("orders.*.>",))
    narrow = Partitioning(16, (1,), ("orders.*.new",))
    assert differs("R", narrow, "ORDERS", Partitioned(wider, "ORDERS")) is not None
    assert differs("R", narrow, "", Partitioned(wider)) is None


def test_a_source_whose_messages_an_older_server_would_lose_is_refused() -> None:
    assert unsuitable(info(), (2, 11)) is None
    assert unsuitable(info(retention="workqueue"), (2, 14)) is None
    assert unsuitable(info(retention="workqueue"), None) is None
    assert "2.14" in (unsuitable(info(retention="interest"), (2, 12)) or "")


# --- on a link ---


class Server:
    """Answers the requests for streams, as `Lookups` does, and records the configurations of new ones."""

    def __init__(self, **streams: bytes) -> None:
        self._streams = streams
        self.created: list[dict[str, Any]] = []

    async def ask(self, request: str, body: bytes, read: Callable[[bytes], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        what, _, name = request.rpartition(".")
        if what == "STREAM.CREATE":
            self.created.append(json.loads(body))
            return read(answer(self.created[-1]))
        if what == "STREAM.MSG.GET":
            raise ApiError(404, 10037, "no message found")
        if name not in self._streams:
            raise ApiError(404, 10059, "stream not found")
        return read(self._streams[name])


def of_version(version: str) -> ServerInfo:
    return ServerInfo(version=version)


async def ensure(server: Server, version: str, partitioning: Partitioning = WANTED) -> PartitionedStream:
    wanted = PartitionedSpec("ORDERS", "COPY", partitioning)
    return await ensure_partitioned(cast(Lookups, server), wanted, of_version(version))


@pytest.mark.parametrize(
    ("version", "window"), [("2.12.1", 100_000_000), ("2.14.0", None), ("2.15.1", None), ("x", None)]
)
async def test_a_copy_has_the_shortest_duplicate_window_that_its_server_allows(
    version: str, window: int | None
) -> None:
    server = Server(ORDERS=answer({"subjects": ["orders.>"]}))
    assert (await ensure(server, version)).created
    (config,) = server.created
    assert config.get("duplicate_window") == window


@pytest.mark.parametrize(
    ("version", "retention", "by", "words"),
    [
        ("2.11.9", "limits", (), "can't compute the partition of an entire subject (2.12 or later)"),
        ("2.12.1", "workqueue", (1,), "has workqueue retention, which nats-server copies without a loss from 2.14 on"),
    ],
)
async def test_a_server_that_is_too_old_for_a_copy_is_refused(
    version: str, retention: str, by: tuple[int, ...], words: str
) -> None:
    server = Server(ORDERS=answer({"subjects": ["orders.>"], "retention": retention}))
    with pytest.raises(SourceError, match=re.escape(words)) as caught:
        await ensure(server, version, replace(WANTED, by=by))
    assert caught.value.reason == "server_too_old"
    assert server.created == []


async def test_a_copy_that_drops_messages_is_refused_where_servers_do_so() -> None:
    copy = answer(OF_SOURCE | {"name": "COPY", "duplicate_window": 120 * 10**9})
    server = Server(ORDERS=answer({"subjects": ["orders.>"]}), COPY=copy)
    assert not (await ensure(server, "2.12.1")).created
    with pytest.raises(SourceError, match="nats stream edit COPY --dupe-window 0s"):
        await ensure(server, "2.14.0")


async def test_members_need_keys_that_expire() -> None:
    with pytest.raises(SourceError, match=r"nats-server 2\.10\.22 has no keys that expire") as caught:
        await members_of(cast(Api, None), cast(Lookups, None), Group("S", "d", "a" * 16), of_version("2.10.22"))
    assert caught.value.reason == "server_too_old"
