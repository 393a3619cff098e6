"""`dead-letters ... redrive` against a real server: no dead letter is deleted before its message is stored."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.audit.letter import for_source, read_letter
from router_trio.nats.jetstream.api import stored_message
from router_trio.protocol import message_ids
from router_trio.protocol.headers import Headers
from tests.support.command import command, dead_letters
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.server_version import needs_server
from tests.support.servers import nats_server

ONE = """
[[routes.to]]
subject = "out.{{wildcard(1)}}"
jetstream = true
"""
TWO = (
    ONE
    + """
[[routes.to]]
subject = "also.{{wildcard(1)}}"
jetstream = true
"""
)
FAILING = "payload = 'string(body.missing)'\n"
"""Payload for the last destination that fails on every message of these tests."""

Result = subprocess.CompletedProcess[str]


def configuration(url: str, to: str, *, source: str = 'filter = "orders.*"', more: str = "", letters: str = "") -> str:
    dead = "dead.{{wildcard(1)}}" if "filter" in source else "dead.all"
    return f"""
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "orders"
{more}
[routes.from]
stream = "ORDERS"
durable = "router"
{source}
[routes.retry]
attempts = 1
[routes.dead_letter]
subject = "{dead}"
{letters}
{to}"""


def letter(number: int, **changes: str | None) -> Headers:
    """Return the headers of a dead letter; `changes` are fields, None for one to leave out."""
    fields: dict[str, str | None] = {
        "Route": "orders",
        "Reason": "handler_error",
        "Detail": "KeyError",
        "Attempts": "5",
        "Subject": "orders.7",
        "Stream": "ORDERS",
        "Sequence": str(number),
        "Time": "2026-11-26T10:00:00.000Z",
    }
    return Headers((f"Router-Dead-Letter-{name}", value) for name, value in (fields | changes).items() if value)


@dataclass
class Place:
    """A server with streams, and a configuration for it."""

    client: RawClient
    url: str
    folder: Path

    @property
    def streams(self) -> JetStream:
        return JetStream(self.client)

    def configure(self, to: str = ONE, **more: str) -> None:
        (self.folder / "router.toml").write_text(configuration(self.url, to, **more))

    async def create(self, **streams: Mapping[str, Any]) -> None:
        """Create streams besides ORDERS and DEAD."""
        for name, config in streams.items():
            await self.streams.create_stream(name, **config)

    async def bury(self, number: int, payload: bytes = b"", /, at: str = "dead.7", **changes: str | None) -> None:
        """Store a dead letter, with these fields changed."""
        await self.streams.publish(at, payload or b'{"number": %d}' % number, letter(number, **changes))

    async def run(self, *arguments: str, action: str = "redrive") -> Result:
        return await dead_letters("orders", action, *arguments, cwd=self.folder)

    async def process(self, *arguments: str) -> Result:
        """Run it in a process of its own, which finds the handlers of its working directory."""
        run = partial(command, "dead-letters", "router.toml", "orders", "redrive", *arguments, cwd=self.folder)
        return await trio.to_thread.run_sync(run)

    async def give_up(self, count: int, to: str = ONE, **more: str) -> None:
        """Have a router give up `count` messages of ORDERS because its last destination fails. Then repair that."""
        self.configure(to + FAILING, **more)
        async with Router(Settings.load(self.folder / "router.toml"), log=False).open():

            async def given_up() -> bool:
                return await self.count("DEAD") == count

            await eventually(given_up, 20)
        self.configure(to, **more)

    async def count(self, stream: str) -> int:
        return int((await self.streams.stream_info(stream))["state"]["messages"])

    async def payloads(self, stream: str) -> list[bytes]:
        return [message.payload for message in await self.streams.stream_messages(stream)]

    async def ids(self, stream: str) -> list[str | None]:
        return [message.header("Nats-Msg-Id") for message in await self.streams.stream_messages(stream)]


@asynccontextmanager
async def place(tmp_path: Path, server_config: str = "", **orders: Any) -> AsyncIterator[Place]:
    async with nats_server(tmp_path, config=server_config) as server, connect(server.url) as client:
        one = Place(client, server.url, tmp_path)
        one.configure()
        await one.streams.create_stream("ORDERS", ["orders.*"], **orders)
        await one.streams.create_stream("DEAD", ["dead.>"])
        yield one


async def test_messages_that_the_server_maps_are_redriven_between_the_streams_that_the_route_names(
    tmp_path: Path,
) -> None:
    mapped = 'mappings { "out.*": "stored.$1", "dead.*": "buried.$1" }\n'
    async with place(tmp_path, mapped) as p:
        await p.streams.edit_stream("DEAD", subjects=["buried.*"])
        await p.create(STORED={"subjects": ["stored.*"]}, LAST={"subjects": ["last.*"], "max_msgs_per_subject": 1})
        for number in range(3):
            await p.streams.publish("orders.7", b"%d" % number)
        await p.give_up(3, ONE + 'stream = "LAST"\n', letters='stream = "DEAD"')
        done = await p.run()
        assert done.stdout == "0 redriven, 3 failed\n"
        assert "stream LAST keeps one message per subject but does not take out.7" in done.stderr
        p.configure(ONE + 'stream = "STORED"\n', letters='stream = "DEAD"')
        assert (await p.run(action="list")).stdout.count("orders.7") == 3
        done = await p.run()
        assert (done.returncode, done.stdout) == (0, "3 redriven, 0 failed\n"), done.stderr
        stored = await p.streams.stream_messages("STORED")
        assert [(one.subject, one.payload) for one in stored] == [("stored.7", b"%d" % n) for n in range(3)]
        assert await p.count("DEAD") == 0


# --- the ids of copies ---


async def test_redriven_copies_have_the_ids_of_the_original_attempt(tmp_path: Path) -> None:
    """So a copy that is already stored is not stored twice."""
    async with place(tmp_path) as p:
        await p.create(OUT={"subjects": ["out.*"]}, ALSO={"subjects": ["also.*"]})
        for number in range(3):
            await p.streams.publish("orders.7", b"%d" % number, {"Nats-Msg-Id": f"sender-{number}", "X": "y"})
        await p.give_up(3, TWO)
        before = await p.streams.stream_messages("OUT")
        assert len(before) == 3, "one of the two destinations had stored it"
        done = await p.run()
        assert (done.returncode, done.stdout) == (0, "3 redriven, 0 failed; 3 were already stored\n"), done.stderr
        assert await p.streams.stream_messages("OUT") == before
        also = await p.streams.stream_messages("ALSO")
        assert [message.payload for message in also] == [b"0", b"1", b"2"]
        assert [message.header("X") for message in also] == ["y"] * 3
        firsts = [str(message.header("Nats-Msg-Id")).rpartition(":")[0] for message in also]
        assert firsts == [str(one).rpartition(":")[0] for one in await p.ids("OUT")]
        assert all(first.startswith(f"ORDERS:{number}:") for number, first in enumerate(firsts, 1))
        assert await p.count("DEAD") == 0


@needs_server(2, 12, lacks="partition of a subject as a whole")
@pytest.mark.parametrize("way", [(), ("--to-source",)], ids=["through its route", "to its source"])
async def test_letters_of_a_route_with_partitions_are_redriven(tmp_path: Path, way: tuple[str, ...]) -> None:
    shared = 'filter = "orders.*"\npartitions = 2'
    async with place(tmp_path) as p:
        await p.create(OUT={"subjects": ["out.*"]}, ALSO={"subjects": ["also.*"]})
        for number in range(3):
            await p.streams.publish("orders.7", b"%d" % number)
        await p.give_up(3, TWO, source=shared)
        before = await p.streams.stream_messages("OUT")
        assert [one.header("Router-Dead-Letter-Stream") for one in await p.streams.stream_messages("DEAD")] == [
            "ORDERS"
        ] * 3
        done = await p.run(*way)
        assert (done.returncode, done.stdout.partition(";")[0].strip()) == (0, "3 redriven, 0 failed"), done.stderr
        assert await p.count("DEAD") == 0
        assert await p.streams.stream_messages("OUT") == before, "these copies had been stored before"
        if way:
            assert await p.payloads("ORDERS") == [b"0", b"1", b"2"] * 2
        else:
            assert await p.payloads("ALSO") == [b"0", b"1", b"2"]


async def test_the_router_stores_no_second_copy_of_a_redriven_message(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.create(OUT={"subjects": ["out.*"]})
        await p.streams.publish("orders.7", b"1")
        await p.give_up(1)
        assert (await p.run()).returncode == 0
        await p.streams.delete_consumer("ORDERS", "router")
        async with Router(Settings.load(tmp_path / "router.toml"), log=False).open() as live:

            async def routed() -> bool:
                return live.routes[0].settled["routed"] == 1

            await eventually(routed, 20)
        assert await p.payloads("OUT") == [b"1"]


async def test_a_redrive_calls_the_handler_and_stores_its_result(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        (tmp_path / "shop.py").write_text(
            "def enrich(message):\n"
            "    if message.payload == b'bad':\n        raise KeyError('total')\n"
            "    if message.payload == b'none':\n        return None\n"
            "    return [message.replace(payload=message.payload + b'%d' % n) for n in (message.sequence, 0)]\n"
        )
        p.configure(more='handler = "shop:enrich"')
        await p.create(OUT={"subjects": ["out.*"]})
        for number, payload in enumerate((b"a", b"bad", b"none"), 1):
            await p.bury(number, payload)
        dry = await p.process("--dry-run")
        assert dry.stdout.splitlines()[0] == "1 would be sent through the handler of the route"
        assert await p.count("OUT") == 0
        done = await p.process()
        assert done.returncode == 1
        assert done.stdout == "1 redriven, 2 failed; 1 of the failed ones are filtered out by the route\n"
        assert "dead letter 2: it fails in the route again: handler_error: KeyError: 'total'" in done.stderr
        assert "dead letter 3: the route filters it out (handler)" in done.stderr
        assert await p.payloads("OUT") == [b"a1", b"a0"]
        assert len(set(await p.ids("OUT"))) == 2
        assert await p.count("DEAD") == 2


async def test_a_redrive_evaluates_expressions_as_for_any_message(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        p.configure(
            ONE + 'payload = \'{"twice": body.number * 2, "from": stream, "at": sequence}\'\n',
            more="when = 'body.number != 2'",
        )
        await p.create(OUT={"subjects": ["out.*"]})
        for number in range(1, 4):
            await p.bury(number)
        await p.bury(4, b"no JSON")
        done = await p.run()
        assert done.stdout == "2 redriven, 2 failed; 1 of the failed ones are filtered out by the route\n", done.stderr
        assert [json.loads(one) for one in await p.payloads("OUT")] == [
            {"twice": 2, "from": "ORDERS", "at": 1},
            {"twice": 6, "from": "ORDERS", "at": 3},
        ]
        assert "dead letter 2: the route filters it out (when)" in done.stderr
        assert "dead letter 4: it fails in the route again: expression" in done.stderr


# --- stored messages, and others ---


async def test_a_letter_stays_if_the_id_of_its_copy_was_used_by_a_sender(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.create(OUT={"subjects": ["out.*"]})
        await p.streams.publish("orders.7", b"mine")
        await p.give_up(1)
        first = str((await p.ids("DEAD"))[0]).rpartition(":dead:")[0]
        assert first.startswith("ORDERS:1:")
        # The id of the copy, as anyone can compute it: here it is obtained by redriving once.
        assert (await p.run()).returncode == 0
        taken = str((await p.ids("OUT"))[0])
        for stream, subject in (("OUT", "out.*"), ("DEAD", "dead.>")):
            await p.streams.delete_stream(stream)
            await p.streams.create_stream(stream, [subject])
        await p.streams.delete_consumer("ORDERS", "router")
        await p.give_up(1)
        await p.streams.publish("out.7", b"another", {"Nats-Msg-Id": taken})
        done = await p.run()
        assert (done.returncode, done.stdout) == (1, "0 redriven, 1 failed\n")
        assert "stream OUT has another message with its Nats-Msg-Id (sequence 1)" in done.stderr
        assert await p.payloads("DEAD") == [b"mine"]


async def test_the_id_of_a_redriven_letter_cannot_be_guessed_and_a_used_one_is_detected(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.bury(1)
        await p.bury(2)
        created = (await p.streams.stream_info("DEAD"))["created"]
        for taken in (f"redriven:DEAD:{created}:1", "redriven:DEAD:1", "dead-1"):
            await p.streams.publish("orders.7", b"another", {"Nats-Msg-Id": taken})
        # A client that can read the dead letter can compute the complete id.
        answer = await p.streams.api("STREAM.MSG.GET.DEAD", {"seq": 2})
        second = read_letter(stored_message(json.dumps(answer).encode()), "orders")
        assert second is not None
        taken = message_ids.find(for_source(second, "DEAD", "main", jetstream=True).headers).decode()
        await p.streams.publish("orders.7", b"another", {"Nats-Msg-Id": taken})
        done = await p.run("--to-source")
        assert (done.returncode, done.stdout) == (1, "1 redriven, 1 failed\n"), done.stderr
        assert "dead letter 2: stream ORDERS has another message with its Nats-Msg-Id (sequence 4)" in done.stderr
        assert (await p.payloads("ORDERS"))[-1] == b'{"number": 1}'
        assert await p.payloads("DEAD") == [b'{"number": 2}']


@pytest.mark.parametrize(("way", "stream"), [((), "OUT"), (("--to-source",), "ORDERS")])
async def test_a_recreated_stream_of_dead_letters_that_reuses_sequences_loses_none(
    tmp_path: Path, way: tuple[str, ...], stream: str
) -> None:
    """Memory storage, or a wiped disk: within the duplicate window of the stored messages."""
    async with place(tmp_path) as p:
        await p.create(OUT={"subjects": ["out.*"]})
        for round_ in range(3):
            for number in range(1, 6):
                await p.bury(100 * round_ + number)
            done = await p.run("--limit", "5", *way)
            assert (done.returncode, done.stdout) == (0, "5 redriven, 0 failed\n"), done.stderr
            await p.streams.delete_stream("DEAD")
            await p.create(DEAD={"subjects": ["dead.>"]})
        numbers = [json.loads(one)["number"] for one in await p.payloads(stream)]
        assert numbers == [100 * round_ + number for round_ in range(3) for number in range(1, 6)]


@pytest.mark.parametrize("way", [(), ("--to-source",)])
async def test_a_letter_stays_if_its_stream_acks_and_keeps_nothing(tmp_path: Path, way: tuple[str, ...]) -> None:
    async with place(tmp_path, retention="interest") as p:
        await p.create(OUT={"subjects": ["out.*"], "retention": "interest"})
        for number in range(1, 4):
            await p.bury(number)
        done = await p.run(*way)
        assert (done.returncode, done.stdout) == (1, "0 redriven, 3 failed\n")
        assert "it keeps only messages that match a consumer" in done.stderr
        assert await p.count("DEAD") == 3


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
async def test_a_message_that_a_consumer_has_already_settled_counts_as_stored(tmp_path: Path, retention: str) -> None:
    """A worker that acks at once has deleted it before it can be read back."""
    async with place(tmp_path) as p, trio.open_nursery() as nursery:
        await p.create(OUT={"subjects": ["out.*"], "retention": retention})
        pushed = await p.client.subscribe("worker.inbox")
        config = {"durable_name": "worker", "ack_policy": "explicit", "deliver_subject": "worker.inbox"}
        await p.streams.api("CONSUMER.DURABLE.CREATE.OUT.worker", {"stream_name": "OUT", "config": config})
        worked: list[int] = []

        async def work() -> None:
            while True:
                message = await pushed.next(60)
                assert message.reply is not None
                await p.client.publish(message.reply, b"+ACK")
                worked.append(json.loads(message.payload)["number"])

        nursery.start_soon(work)
        for number in range(1, 21):
            await p.bury(number)
        done = await p.run()
        assert (done.returncode, done.stdout) == (0, "20 redriven, 0 failed\n"), done.stderr
        await eventually(lambda: len(worked) == 20, 5)
        assert worked == list(range(1, 21))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", [(), ("--to-source",)])
async def test_an_old_value_replaces_no_newer_one(tmp_path: Path, way: tuple[str, ...]) -> None:
    async with place(tmp_path, max_msgs_per_subject=1) as p:
        await p.create(OUT={"subjects": ["out.*"], "max_msgs_per_subject": 1})
        for subject, payload in (("orders.7", b"old"), ("orders.8", b"only")):
            await p.streams.publish(subject, payload)
        await p.give_up(2)
        await p.streams.publish("out.7" if not way else "orders.7", b"new")
        done = await p.run(*way)
        assert (done.returncode, done.stdout) == (1, "1 redriven, 1 failed\n"), done.stderr
        stream = "ORDERS" if way else "OUT"
        assert f"dead letter 1: stream {stream} has a newer message on" in done.stderr
        assert b"new" in await p.payloads(stream)
        assert b"only" in await p.payloads(stream)
        assert await p.payloads("DEAD") == [b"old"]


async def test_several_values_of_one_key_are_redriven_in_their_order(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.create(OUT={"subjects": ["out.*"], "max_msgs_per_subject": 1})
        for number in range(5):
            await p.streams.publish("orders.7", b"%d" % number)
        await p.give_up(5)
        done = await p.run("--limit", "3")
        assert (done.returncode, done.stdout) == (0, "3 redriven, 0 failed\n"), done.stderr
        assert await p.payloads("OUT") == [b"2"]
        assert (await p.run()).returncode == 0
        assert await p.payloads("OUT") == [b"4"]


async def test_of_several_values_made_by_a_handler_the_last_must_be_stored(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        (tmp_path / "values.py").write_text(
            "def several(message):\n    return [message.replace(payload=b'%d' % n) for n in range(3)]\n"
        )
        p.configure(more='handler = "values:several"')
        await p.create(OUT={"subjects": ["out.*"], "max_msgs_per_subject": 1})
        await p.bury(1)
        done = await p.process()
        assert (done.returncode, done.stdout) == (0, "1 redriven, 0 failed\n"), done.stderr
        assert await p.payloads("OUT") == [b"2"]


# --- foreign letters ---


@pytest.mark.parametrize("way", [(), ("--to-source",), ("--foreign",), ("--to-source", "--foreign")])
async def test_only_subjects_that_the_stream_takes_are_redriven(tmp_path: Path, way: tuple[str, ...]) -> None:
    async with place(tmp_path) as p:
        p.configure('[[routes.to]]\nsubject = "out.all"\njetstream = true\n', source="")
        await p.create(OUT={"subjects": ["out.*"]}, PAYMENTS={"subjects": ["payments.>"]})
        await p.bury(1, at="dead.all", Subject="payments.all")
        await p.bury(2, at="dead.all", Subject="orders.a.b")
        await p.bury(3, at="dead.all", Subject="orders.7")
        done = await p.run(*way)
        assert (done.returncode, done.stdout) == (1, "1 redriven, 2 failed\n"), done.stderr
        assert "the source stream does not take its subject 'payments.all'" in done.stderr
        assert await p.count("PAYMENTS") == 0
        assert await p.count("DEAD") == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"Reason": None}, "it has no Router-Dead-Letter-Reason"),
        ({"Attempts": None}, "its Router-Dead-Letter-Attempts is not a number"),
        ({"Attempts": "9" * 5000}, "its Router-Dead-Letter-Attempts is not a number"),
        ({"Time": "yesterday"}, "its Router-Dead-Letter-Time is not a time"),
        ({"Stream": None}, "its source is not a stream, but the route reads stream ORDERS"),
        ({"Stream": "OTHER"}, "its source is stream 'OTHER', but the route reads stream ORDERS"),
        ({"Sequence": "-1"}, "its Router-Dead-Letter-Sequence is not a number"),
    ],
)
async def test_a_letter_that_no_router_wrote_needs_a_flag(
    tmp_path: Path, changes: dict[str, str | None], why: str
) -> None:
    async with place(tmp_path) as p:
        await p.create(OUT={"subjects": ["out.*"]})
        await p.streams.publish("dead.7", b'{"number": 1}', letter(1, **changes))
        done = await p.run()
        assert (done.returncode, done.stdout) == (1, "0 redriven, 1 failed\n")
        assert why in done.stderr
        assert "--foreign" in done.stderr
        assert await p.count("DEAD") == 1
        done = await p.run("--foreign")
        assert (done.returncode, done.stdout) == (0, "1 redriven, 0 failed\n"), done.stderr
        assert await p.payloads("OUT") == [b'{"number": 1}']
