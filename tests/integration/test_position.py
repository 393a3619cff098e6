"""`position` on real servers: a consumer continues on the copy, skips nothing, and repeats as many as announced."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawMessage, connect
from tests.support.servers import NatsServer

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "copy"
when = "body.number % 11 != 5"
from = {{ stream = "SOURCE", durable = "router", filter = "source.*" }}
to = [ {{ subject = "{to}", jetstream = true }} ]
"""
TO = "copy.{{wildcard(1)}}"


class Place:
    """A server with a source, a copy, and a consumer `billing` of the source."""

    def __init__(self, folder: Path, server: NatsServer, stream: JetStream) -> None:
        self.folder = folder
        self.server = server
        self.stream = stream

    def configure(self, to: str = TO) -> None:
        (self.folder / "router.toml").write_text(CONFIGURATION.format(url=self.server.url, to=to))

    async def publish(self, count: int, first: int = 0) -> None:
        numbers = range(first, first + count)
        await self.stream.publish_many([(f"source.{n % 3}", b'{"number": %d}' % n, None) for n in numbers])

    async def copy(self) -> None:
        """Run the router until everything in the source is acked."""

        async def done() -> bool:
            info = await self.stream.consumer_info("SOURCE", "router")
            return bool(info["num_pending"] == 0 == info["num_ack_pending"])

        async with Router(Settings.load(self.folder / "router.toml"), log=False).open():
            await eventually(done)

    async def pull(self, stream: str, count: int) -> list[RawMessage]:
        """Return the next messages of `billing`, up to a number."""
        inbox = self.stream.client.new_inbox()
        replies = await self.stream.client.subscribe(inbox)
        body = json.dumps({"batch": count, "no_wait": True}).encode()
        await self.stream.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.billing", body, None, inbox)
        messages = list[RawMessage]()
        while len(messages) < count:
            message = await replies.next()
            if message.status:
                break
            messages.append(message)
        await replies.unsubscribe()
        return messages

    async def ack(self, messages: list[RawMessage]) -> None:
        for one in messages:
            assert one.reply is not None
            await self.stream.client.request(one.reply, b"+ACK")

    async def position(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run the command, and return the exit code and the answer."""
        result = await self.command("--json", *arguments)
        assert result.stdout, result.stderr
        return result.returncode, json.loads(result.stdout)

    async def command(self, *arguments: str) -> Any:
        words = ("position", "router.toml", "copy", "--consumer", "billing", *arguments)
        return await over_its_links(*words, cwd=self.folder)


@asynccontextmanager
async def place(folder: Path, server: NatsServer, **consumer: Any) -> AsyncIterator[Place]:
    async with connect(server.url) as client:
        stream = JetStream(client)
        for name in ("SOURCE", "COPY"):
            await stream.create_stream(name, [f"{name.lower()}.*"], duplicate_window=100_000_000)
        await stream.create_consumer("SOURCE", "billing", ack_wait=600 * 10**9, **consumer)
        here = Place(folder, server, stream)
        here.configure()
        yield here


def number(message: RawMessage) -> int:
    found: int = json.loads(message.payload)["number"]
    return found


@pytest.mark.parametrize("seed", range(6))
async def test_a_consumer_continues_on_the_copy(seed: int, tmp_path: Path, server: NatsServer) -> None:
    drawn = Random(seed)
    choices: list[dict[str, Any]] = [{}, {"filter_subject": "source.1"}, {"filter_subjects": ["source.0", "source.2"]}]
    filters = choices[seed % 3]
    async with place(tmp_path, server, **filters) as here:
        count = drawn.randrange(30, 120)
        await here.publish(count)
        await here.copy()
        got = await here.pull("SOURCE", drawn.randrange(1, count))
        acked = [one for one in got if drawn.random() < 0.7]
        await here.ack(acked)
        await trio.sleep(0.2)  # longer than the duplicate window
        for copy in await here.stream.stream_messages("COPY") if seed >= 3 else []:
            if drawn.random() < 0.1:  # to the end of the stream
                await here.stream.api("STREAM.MSG.DELETE.COPY", {"seq": copy.sequence})
                await here.stream.publish(copy.subject, copy.payload, list(copy.headers))
        code, answer = await here.position("--apply")
        assert (code, answer["applied"]) == (0, True)

        wanted = {n for n in range(count) if n % 11 != 5 and (not filters or (n % 3 == 1) == (seed % 3 == 1))}
        done = {number(one) for one in acked}
        continued = [number(one) for one in await here.pull("COPY", 2 * count)]
        assert wanted - done <= set(continued) <= wanted
        repeats = len(set(continued) & done)
        assert answer["repeats"]["least"] <= repeats <= answer["repeats"]["most"]
        assert len(continued) == answer["copies"] == len(set(continued))
        if not [n for n in range(count) if n % 11 == 5 and n in {number(one) for one in got}]:
            assert answer["repeats"]["least"] == repeats


async def test_repeats_are_exact_if_every_message_has_its_copy(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.publish(5)
        await here.copy()
        got = await here.pull("SOURCE", 5)
        await here.ack([got[0], got[2], got[4]])
        code, answer = await here.position()
        assert (code, answer["sequence"], answer["repeats"]) == (0, 2, {"least": 2, "most": 2, "further_copies": 0})
        assert answer["applied"] is False
        assert "COPY" not in str(await here.stream.api("CONSUMER.NAMES.COPY"))  # nothing was created
        result = await here.command()
        assert "would continue at sequence 2 of stream COPY on main" in result.stdout
        assert "4 copies from there on; 2 of them repeat an acked message" in result.stdout


async def test_a_copy_stored_twice_repeats_no_acked_message_if_nothing_was_acked(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here:
        await here.publish(4)
        await here.copy()
        await trio.sleep(0.2)  # longer than the duplicate window
        (copy, *_) = await here.stream.stream_messages("COPY")
        await here.stream.publish(copy.subject, copy.payload, list(copy.headers))
        for pulled in (0, 3):
            await here.pull("SOURCE", pulled)
            code, answer = await here.position()
            assert (code, answer["repeats"]) == (0, {"least": 1, "most": 1, "further_copies": 1})
            assert (await here.command()).stdout.splitlines()[1:] == [
                "would continue at sequence 1 of stream COPY on main",
                "5 copies from there on; none of them repeats an acked message",
                "1 of these repeats an earlier copy of its message",
            ]


@pytest.mark.parametrize(
    ("subjects", "consumer", "note"),
    [
        (["source.*"], {}, []),
        (["source.*"], {"filter_subject": "source.>"}, []),
        (["source.*", "noise"], {"filter_subject": "source.1"}, []),
        (["source.*", "noise"], {}, ["the consumer reads noise, and the route copies only source.*"]),
        (["source.>"], {}, ["the consumer reads source.>, and the route copies only source.*"]),
        (
            ["source.>"],
            {"filter_subject": "source.>"},
            ["the consumer reads source.>, and the route copies only source.*"],
        ),
    ],
)
async def test_subjects_that_a_consumer_reads_and_the_route_does_not_copy_are_noted(
    subjects: list[str], consumer: dict[str, str], note: list[str], tmp_path: Path, server: NatsServer
) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", subjects)
        await stream.create_stream("COPY", ["copy.*"])
        await stream.create_consumer("SOURCE", "billing", **consumer)
        here = Place(tmp_path, server, stream)
        here.configure()
        code, answer = await here.position()
        assert (code, answer["notes"]) == (0, note)


async def test_messages_that_are_copied_later_are_not_skipped(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.publish(4)
        await here.copy()
        await here.ack(await here.pull("SOURCE", 4))
        await here.publish(4, first=6)
        code, answer = await here.position("--apply")
        assert (code, answer["sequence"], answer["copies"], answer["without_copy"]["waiting"]) == (0, 5, 0, 4)
        await here.copy()
        assert [number(one) for one in await here.pull("COPY", 10)] == [6, 7, 8, 9]


async def test_a_lost_copy_is_reported(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.publish(8)
        await here.copy()
        await here.stream.api("STREAM.MSG.DELETE.COPY", {"seq": 3})
        code, answer = await here.position()
        assert (code, answer["missing"]) == (1, [3])
        assert answer["without_copy"] == {"waiting": 0, "filtered": 1, "missing": 1}


async def test_a_consumer_of_the_copy_is_never_changed(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.publish(3)
        await here.copy()
        await here.stream.create_consumer("COPY", "billing", deliver_policy="new")
        result = await here.command("--apply")
        assert result.returncode == 1
        assert "stream COPY has a consumer billing already" in result.stderr
        info = await here.stream.consumer_info("COPY", "billing")
        assert info["config"]["deliver_policy"] == "new"


@pytest.mark.parametrize(
    ("consumer", "to", "why"),
    [
        ({"filter_subject": "source.1"}, "copy.all", "the filters of the consumer can't be mapped"),
        ({"filter_subject": "noise"}, TO, "copies no message that matches noise"),
    ],
)
async def test_a_question_without_an_answer(
    consumer: dict[str, Any], to: str, why: str, tmp_path: Path, server: NatsServer
) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*", "noise"])
        await stream.create_stream("COPY", ["copy.*"])
        await stream.create_consumer("SOURCE", "billing", **consumer)
        here = Place(tmp_path, server, stream)
        here.configure(to)
        result = await here.command()
        assert result.returncode == 1
        assert why in result.stderr


async def test_a_consumer_that_does_not_exist(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.delete_consumer("SOURCE", "billing")
        result = await here.command()
        assert (result.returncode, result.stdout) == (1, "")
        assert "stream SOURCE has no consumer billing" in result.stderr


@pytest.mark.parametrize("name", ["a.b", "", "*", ">", "a b", "x\r\nPUB y 0\r\n", "\udcff"])
async def test_a_name_that_no_consumer_has_is_refused_before_a_server_is_asked(name: str, tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url="nats://127.0.0.1:1", to=TO))
    result = await over_its_links("position", "router.toml", "copy", "--consumer", name, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("router-trio: error: --consumer: ")


async def test_a_copy_without_a_stream_is_named(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.stream.delete_stream("COPY")
        result = await here.command()
        assert result.returncode == 1
        assert "no stream takes the copies of route copy, copy.* on main" in result.stderr
