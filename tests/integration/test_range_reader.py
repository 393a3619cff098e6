"""A range of a stream read by a consumer of its own, over a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from router_trio import Settings
from router_trio.errors import SourceError
from router_trio.nats import range_reader, requests
from router_trio.nats.command_link import CommandLink, open_links
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.nats.range_reader import StreamRange, read_range, read_stream
from router_trio.nats.stored import StoredMessages
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

CONFIGURATION = """
[connections.main]
servers = ["{url}"]
"""
DENIED = """
authorization {{ users: [
  {{ user: admin, password: admin }}
  {{ user: router, password: router, permissions: {{ publish: {{ deny: ["{denied}"] }} }} }}
] }}
"""


@asynccontextmanager
async def place(url: str, user: str | None = None) -> AsyncIterator[tuple[JetStream, CommandLink]]:
    """A stream SOURCE, and a link to its server."""
    settings = Settings.parse(CONFIGURATION.format(url=url.replace("//", "//router:router@") if user else url).encode())
    async with connect(url, user=user, password=user) as client, open_links(settings, "test", ["main"]) as links:
        streams = JetStream(client)
        await streams.create_stream("SOURCE", ["source.*", "noise"])
        yield streams, links["main"]


async def read(link: CommandLink, first: int, last: int, patterns: Sequence[str] = (">",)) -> list[StoredMessage]:
    found = list[StoredMessage]()
    async for batch in read_range(link.stored("SOURCE"), link.requests, StreamRange(first, last, patterns, "test")):
        assert batch, "no batch is empty"
        found += batch
    return found


async def consumers(streams: JetStream) -> list[str]:
    answer = await streams.api("CONSUMER.NAMES.SOURCE")
    return list(answer["consumers"] or ())


async def test_drawn_ranges_are_read_as_single_messages_are(server: NatsServer) -> None:
    drawn = Random(7)
    async with place(server.url) as (streams, link):
        sizes = [0, 1, 100, 70_000]
        await streams.publish_many(
            (
                drawn.choice(["source.1", "source.2", "noise"]),
                drawn.randbytes(drawn.choice(sizes)),
                drawn_headers(drawn),
            )
            for _ in range(1500)
        )
        for sequence in drawn.sample(range(1, 1501), 100):
            await streams.api("STREAM.MSG.DELETE.SOURCE", {"seq": sequence})
        stored = link.stored("SOURCE")
        everything = [one for one in await stored.get_each(range(1, 1501)) if one is not None]
        for patterns in ((">",), ("source.*",), ("source.2", "noise")):
            first = drawn.randrange(1, 1600)
            for last in (first, drawn.randrange(first, 1700), 2**62):
                wanted = [one for one in everything if first <= one.sequence <= last and of(patterns, one.subject)]
                assert await read(link, first, last, patterns) == wanted
        assert await consumers(streams) == [], "none is left"


def drawn_headers(drawn: Random) -> list[tuple[str, str]] | None:
    return drawn.choice([None, [("a", "1"), ("b", ""), ("a", "2")], [("Nats-Msg-Id", drawn.randbytes(8).hex())]])


def of(patterns: Sequence[str], subject: str) -> bool:
    return any(one in (">", subject) or (one == "source.*" and subject != "noise") for one in patterns)


async def test_the_consumer_is_deleted_if_reading_is_cancelled(server: NatsServer) -> None:
    async with place(server.url) as (streams, link):
        await streams.publish_many(("source.1", b"", None) for _ in range(100))
        with trio.move_on_after(5) as scope:
            reading = read_range(link.stored("SOURCE"), link.requests, StreamRange(1, 100, ["source.*"], "test"))
            async with aclosing(reading) as batches:
                async for _ in batches:
                    (name,) = await consumers(streams)
                    assert name.startswith("test-")
                    scope.cancel()
        assert scope.cancelled_caught
        assert await consumers(streams) == []


async def test_everything_before_a_deleted_consumer_is_read_and_then_the_reader_fails(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "ANSWER_WITHIN", 1.0)
    monkeypatch.setattr(range_reader, "ANSWER_WITHIN", 1.0)
    async with place(server.url) as (streams, link):
        await streams.publish_many(("source.1", b"", None) for _ in range(100))
        found = list[int]()

        async def read_and_delete() -> None:
            wanted = StreamRange(1, 100, ["source.*"], "test", most=10)
            async for batch in read_range(link.stored("SOURCE"), link.requests, wanted):
                found.extend(one.sequence for one in batch)
                for name in await consumers(streams):
                    await streams.delete_consumer("SOURCE", name)

        with pytest.raises(SourceError):
            await read_and_delete()
        assert 1 <= len(found) < 100
        assert found == list(range(1, len(found) + 1))


async def test_without_payloads(server: NatsServer) -> None:
    async with place(server.url) as (streams, link):
        headers = [("Nats-Msg-Id", "a"), ("b", "1")]
        await streams.publish_many([("source.1", b"payload", headers), ("source.2", b"payload", None)])
        reading = read_range(link.stored("SOURCE"), link.requests, StreamRange(1, 2, [">"], "test", headers_only=True))
        found = [one async for batch in reading for one in batch]
        assert [(one.sequence, one.subject, one.payload) for one in found] == [
            (1, "source.1", b""),
            (2, "source.2", b""),
        ]
        assert found[0].headers == b"NATS/1.0\r\nNats-Msg-Id: a\r\nb: 1\r\nNats-Msg-Size: 7\r\n\r\n"


async def read_all(link: CommandLink, last: int, *, by_consumer: bool = True) -> list[StoredMessage]:
    wanted = StreamRange(1, last, ["source.*"], "test", most=10)
    reading = read_stream(link.stored("SOURCE"), link.requests, wanted, by_consumer=by_consumer)
    async with aclosing(reading) as batches:
        return [one async for batch in batches for one in batch]


async def test_another_consumer_continues_where_a_deleted_one_ended(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(server.url) as (streams, link):
        await streams.publish_many(("source.1", b"", None) for _ in range(200))
        created, pulled = list[str](), 0
        create, send = StoredMessages.create_reader, range_reader._Pull.send

        async def count(self: StoredMessages, name: str, *given: Any, **more: Any) -> str:
            created.append(name)
            return await create(self, name, *given, **more)

        def delete(self: Any, number: int) -> None:
            nonlocal pulled
            pulled += 1
            if pulled == 3:
                link.requests.send(link.stored("SOURCE").subject_of("CONSUMER.DELETE", created[0])).forget()
            send(self, number)

        monkeypatch.setattr(StoredMessages, "create_reader", count)
        monkeypatch.setattr(range_reader._Pull, "send", delete)
        assert [one.sequence for one in await read_all(link, 200)] == [*range(1, 201)]
        assert len(created) == 2
        assert await consumers(streams) == []


async def test_without_a_consumer_everything_is_requested_from_the_leader(server: NatsServer) -> None:
    async with place(server.url) as (streams, link):
        await streams.publish_many(("source.1", b"%d" % n, None) for n in range(50))
        advisories = await streams.client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.>")
        assert await read_all(link, 50, by_consumer=False) == await read_all(link, 50)
        await streams.client.ping()
        assert {one.subject.split(".")[4] for one in advisories.waiting()} == {"CREATED", "DELETED"}


@pytest.mark.parametrize("denied", ["CREATE", "MSG.NEXT"])
async def test_a_consumer_that_is_not_permitted_is_named(denied: str, tmp_path: Path) -> None:
    subject = f"$JS.API.CONSUMER.{denied}.>"
    async with (
        nats_server(tmp_path, config=DENIED.format(denied=subject)) as server,
        place(server.url, "admin") as (streams, link),
    ):
        await streams.publish("source.1", b"")
        with pytest.raises(SourceError, match=rf"may not publish to \$JS.API.CONSUMER.{denied}.SOURCE.test-"):
            await read(link, 1, 1)
        assert await consumers(streams) == []
        assert [one.sequence for one in await read_all(link, 1)] == [1], "requested from the leader"


async def test_a_consumer_that_may_not_be_deleted_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_reader, "UNUSED_FOR", 12.5)
    async with (
        nats_server(tmp_path, config=DENIED.format(denied="$JS.API.CONSUMER.DELETE.>")) as server,
        place(server.url, "admin") as (streams, link),
    ):
        await streams.publish("source.1", b"")
        assert len(await read(link, 1, 1)) == 1
        (name,) = await consumers(streams)
        config = (await streams.consumer_info("SOURCE", name))["config"]
        assert (config["inactive_threshold"], config["ack_policy"]) == (12_500_000_000, "none")
