"""`router-trio dead-letters` against a real server: lists and shows dead letters, and redrives each exactly once."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.support.command import COMMAND, command, dead_letters, environment
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import nats_server

CONFIG = """
[connections.main]
servers = ["{url}"]
[[routes]]
name = "orders"
[routes.from]
stream = "ORDERS"
durable = "router"
filter = "orders.*"
[routes.dead_letter]
subject = "dead.{{{{wildcard(1)}}}}"
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}"
jetstream = true
[[routes]]
name = "core"
[routes.from]
subject = "calls.*"
[routes.dead_letter]
subject = "dead.core"
[[routes.to]]
subject = "heard"
"""

Result = subprocess.CompletedProcess[str]


def dead_letter(
    number: int, route: str = "orders", subject: str = "orders.7", reason: str = "handler_error"
) -> tuple[str, bytes, dict[str, str]]:
    """Return subject, payload and headers of a dead letter, as a router writes them."""
    headers = {
        "X-Shop": "north",
        "Nats-Msg-Id": f"dead-{route}-{number}",
        "Router-Dead-Letter-Route": route,
        "Router-Dead-Letter-Reason": reason,
        "Router-Dead-Letter-Detail": "KeyError",
        "Router-Dead-Letter-Attempts": "5",
        "Router-Dead-Letter-Subject": subject,
        "Router-Dead-Letter-Time": "2026-11-26T10:00:00.000Z",
    }
    if route == "orders":
        headers |= {"Router-Dead-Letter-Stream": "ORDERS", "Router-Dead-Letter-Sequence": str(number)}
    return "dead.core" if route == "core" else "dead.7", json.dumps({"number": number}).encode(), headers


@dataclass
class Place:
    """A server with the streams `ORDERS`, `DEAD` and `OUT`, and a configuration for it."""

    client: RawClient
    folder: Path

    @property
    def streams(self) -> JetStream:
        return JetStream(self.client)

    async def bury(
        self, number: int, *, route: str = "orders", subject: str = "orders.7", reason: str = "handler_error"
    ) -> None:
        """Store a dead letter as a router does."""
        await self.streams.publish(*dead_letter(number, route, subject, reason))

    async def bury_many(self, count: int) -> None:
        """Store `count` dead letters, numbered from 1."""
        await self.streams.publish_many([dead_letter(number + 1) for number in range(count)])

    async def bury_raw(self, lines: bytes) -> None:
        """Store one with these header lines."""
        block = b"NATS/1.0\r\n" + lines + b"\r\n"
        inbox = await self.client.subscribe("_INBOX.buried")
        await self.client.send(b"HPUB dead.7 _INBOX.buried %d %d\r\n%b\r\n" % (len(block), len(block), block))
        assert b"error" not in (await inbox.next(5)).payload
        await inbox.unsubscribe()

    async def run(self, *arguments: str, route: str = "orders") -> Result:
        """Run the command to its end."""
        return await dead_letters(route, *arguments, cwd=self.folder)

    async def process(self, *arguments: str, route: str = "orders") -> Result:
        """Run the command in a process of its own, so that another one may run beside it."""
        return await trio.to_thread.run_sync(
            lambda: command("dead-letters", "router.toml", route, *arguments, cwd=self.folder)
        )

    async def sequences(self, stream: str) -> list[int]:
        return [message.sequence for message in await self.streams.stream_messages(stream)]

    async def numbers(self, stream: str) -> list[int]:
        return [json.loads(message.payload)["number"] for message in await self.streams.stream_messages(stream)]


@asynccontextmanager
async def place(tmp_path: Path, **dead: object) -> AsyncIterator[Place]:
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        (tmp_path / "router.toml").write_text(CONFIG.format(url=server.url))
        one = Place(client, tmp_path)
        await one.streams.create_stream("ORDERS", ["orders.*"])
        await one.streams.create_stream("DEAD", ["dead.>"], **dead)
        await one.streams.create_stream("OUT", ["out.*"])
        yield one


async def test_dead_letters_are_listed_and_shown(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.bury(1)
        await p.bury(2, route="core", subject="calls.x")
        await p.bury(3, reason="time\tout")
        await p.streams.publish("dead.other", b"none of any route")
        listed = await p.run("list")
        assert listed.returncode == 0, listed.stderr
        heading, *rows = listed.stdout.splitlines()
        assert heading.split() == ["SEQUENCE", "TIME", "REASON", "ATTEMPTS", "SIZE", "SUBJECT"]
        assert [row.split() for row in rows] == [
            ["1", "2026-11-26T10:00:00.000Z", "handler_error", "5", "13", "orders.7"],
            ["3", "2026-11-26T10:00:00.000Z", "time\\tout", "5", "13", "orders.7"],
        ]
        lines = (await p.run("list", "--json", "--where", "body.number > 1", "--limit", "1")).stdout.splitlines()
        assert [json.loads(line)["sequence"] for line in lines] == [3]
        shown = await p.run("show", "1")
        assert "Router-Dead-Letter-Detail: KeyError" in shown.stdout
        assert '"number": 1' in shown.stdout
        assert json.loads((await p.run("show", "1", "--json")).stdout)["json"] == {"number": 1}
        assert "7b 22 6e 75" in (await p.run("show", "1", "--hex")).stdout
        missing = await p.run("show", "99")
        assert (missing.returncode, missing.stdout) == (1, "")
        assert "has no message 99" in missing.stderr


async def test_dead_letters_with_any_headers_are_listed(tmp_path: Path) -> None:
    values = {
        "Attempts": (b"9" * 5000, b"", b"-1", b"\xff\xfe", b"0x10", "\u0665".encode(), b"18446744073709551616", b"1e3"),
        "Sequence": (b"9" * 5000, b"", b"-1", b"\xff"),
        "Time": (b"9" * 5000, b"", b"9999-99-99T99:99:99Z", b"\xff", b"0001-01-01T00:00:00Z"),
        "Subject": (b"a." * 5000, b"", b"\xff", b"a b"),
        "Reason": (b"r" * 5000, b"", b"\xff"),
        "Detail": (b"d" * 5000, b"", b"\xff\x00\x1b[2J"),
        "Stream": (b"S" * 5000, b"", b"\xff"),
        "Message-Id": (b"m" * 5000, b"", b"\xff"),
    }
    async with place(tmp_path) as p:
        count = 0
        for name, odd in values.items():
            for value in odd:
                for lines in (1, 2):
                    line = b"Router-Dead-Letter-%b: %b\r\n" % (name.encode(), value)
                    await p.bury_raw(b"Router-Dead-Letter-Route: orders\r\n" + lines * line)
                    count += 1
        listed = await p.run("list", "--json")
        assert (listed.returncode, listed.stderr) == (0, "")
        shown = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [one["sequence"] for one in shown] == list(range(1, count + 1))
        assert {one["attempts"] for one in shown} == {None}
        assert max(map(len, listed.stdout.splitlines())) < 6_000
        table = await p.run("list")
        assert (table.returncode, len(table.stdout.splitlines())) == (0, count + 1)
        assert max(map(len, table.stdout.splitlines())) < 400
        for action in (("redrive",), ("redrive", "--foreign"), ("redrive", "--to-source", "--foreign")):
            done = await p.run(*action)
            assert (done.returncode, done.stdout) == (1, f"0 redriven, {count} failed\n")
            assert "Traceback" not in done.stderr
        assert (await p.run("purge", "--yes")).stdout == f"{count} purged, 0 failed\n"


async def test_a_redriven_message_passes_through_its_own_route_alone(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        for number in range(1, 4):
            await p.bury(number)
        await p.bury(4, route="core", subject="calls.x")
        dry = await p.run("redrive", "--dry-run")
        assert dry.stdout.splitlines()[0] == "1 would be sent to out.7"
        assert dry.stdout.splitlines()[-1] == "3 would be redriven, 0 failed"
        assert await p.numbers("OUT") == []
        done = await p.run("redrive", "--where", 'body.number != 2 && headers["X-Shop"] == "north"')
        assert (done.returncode, done.stdout, done.stderr) == (0, "2 redriven, 0 failed\n", "")
        messages = await p.streams.stream_messages("OUT")
        assert [message.subject for message in messages] == ["out.7", "out.7"]
        assert [json.loads(message.payload)["number"] for message in messages] == [1, 3]
        for message in messages:
            assert sorted(name for name, _ in message.headers) == ["Nats-Msg-Id", "X-Shop"], "as the route sends it"
        assert await p.sequences("ORDERS") == [], "no other consumer of the source gets it"
        assert await p.sequences("DEAD") == [2, 4]


async def test_to_source_publishes_it_on_its_original_subject_and_names_the_receivers(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.bury(1)
        await p.bury(2)
        done = await p.run("redrive", "--to-source")
        assert (done.returncode, done.stdout) == (0, "2 redriven, 0 failed\n"), done.stderr
        assert "every consumer of stream ORDERS with a matching filter gets these messages" in done.stderr
        messages = await p.streams.stream_messages("ORDERS")
        assert [(message.subject, json.loads(message.payload)["number"]) for message in messages] == [
            ("orders.7", 1),
            ("orders.7", 2),
        ]
        for message in messages:
            names = [name for name, _ in message.headers if not name.startswith("Router-Dead-Letter-")]
            assert sorted(names) == ["Nats-Msg-Id", "Router-Redriven", "X-Shop"]
            assert message.header("Router-Redriven") == "1"
            assert message.header("Router-Dead-Letter-Reason") == "handler_error", "its history"
        assert await p.sequences("DEAD") == []
        assert await p.sequences("OUT") == []


@pytest.mark.parametrize(("way", "stream"), [((), "OUT"), (("--to-source",), "ORDERS")])
async def test_an_interrupted_redrive_is_completed_by_the_next_one(
    tmp_path: Path, way: tuple[str, ...], stream: str
) -> None:
    """It is killed at any point: each message arrives once, and no dead letter is left."""
    count = 2_000
    async with place(tmp_path) as p:
        await p.bury_many(count)
        seen: list[int] = []
        for _ in range(3):
            process = await trio.lowlevel.open_process(
                [*COMMAND, "dead-letters", "router.toml", "orders", "redrive", *way],
                cwd=tmp_path,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            before = (await p.streams.stream_info(stream))["state"]["messages"]

            async def more(before: int = before) -> bool:
                return bool((await p.streams.stream_info(stream))["state"]["messages"] > before + 50)

            await eventually(more, 20)
            process.kill()
            await process.wait()
            seen.append((await p.streams.stream_info("DEAD"))["state"]["messages"])
        assert count > seen[0] > seen[1] > seen[2] > 0, "each was killed in the middle"
        done = await p.run("redrive", *way)
        assert done.returncode == 0, done.stderr
        assert await p.sequences("DEAD") == []
        assert sorted(await p.numbers(stream)) == list(range(1, count + 1))


@pytest.mark.parametrize(("way", "stream"), [((), "OUT"), (("--to-source",), "ORDERS")])
async def test_two_concurrent_redrives_store_each_message_once(
    tmp_path: Path, way: tuple[str, ...], stream: str
) -> None:
    count = 500
    async with place(tmp_path) as p:
        await p.bury_many(count)
        done: list[Result] = []

        async def run() -> None:
            done.append(await p.process("redrive", *way))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            nursery.start_soon(run)
        assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
        assert await p.sequences("DEAD") == []
        assert sorted(await p.numbers(stream)) == list(range(1, count + 1))


async def test_a_signal_ends_a_redrive_after_the_publishes_under_way(tmp_path: Path) -> None:
    count = 3_000
    async with place(tmp_path) as p:
        await p.bury_many(count)
        process = await trio.lowlevel.open_process(
            [*COMMAND, "dead-letters", "router.toml", "orders", "redrive"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
        )

        async def begun() -> bool:
            return bool((await p.streams.stream_info("OUT"))["state"]["messages"])

        await eventually(begun, 20)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        said = b"".join([part async for part in process.stdout]).decode()
        assert await process.wait() == 130
        redriven = int(said.split()[0])
        assert 0 < redriven < count
        assert len(await p.sequences("DEAD")) == count - redriven
        assert await p.numbers("OUT") == list(range(1, redriven + 1)), "in order"


async def test_a_dead_letter_that_cannot_be_redriven_stays_and_is_reported(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.bury(1, subject="$JS.API.STREAM.DELETE.OUT")
        await p.bury(2, subject="payments.7")
        await p.bury(3)
        for way in (), ("--to-source",):
            done = await p.run("redrive", "--dry-run", *way)
            assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 would be redriven, 2 failed")
        done = await p.run("redrive")
        assert (done.returncode, done.stdout) == (1, "1 redriven, 2 failed\n")
        assert "dead letter 1: the route does not read its subject '$JS.API.STREAM.DELETE.OUT'" in done.stderr
        assert await p.sequences("DEAD") == [1, 2]
        await p.streams.delete_stream("OUT")
        await p.bury(4)
        done = await p.run("redrive", "--where", "body.number == 4")
        assert done.returncode == 1
        assert "no stream takes out.7" in done.stderr
        assert len(await p.sequences("DEAD")) == 3
        failing = await p.run("list", "--where", "body.missing == 1")
        assert failing.returncode == 1
        assert "--where failed" in failing.stderr


@pytest.mark.parametrize(("way", "subject"), [((), "heard"), (("--to-source",), "calls.x")])
async def test_a_core_message_is_redriven_only_to_a_subscriber(
    tmp_path: Path, way: tuple[str, ...], subject: str
) -> None:
    async with place(tmp_path) as p:
        await p.bury(1, route="core", subject="calls.x")
        done = await p.run("redrive", *way, route="core")
        assert (done.returncode, done.stdout) == (1, "0 redriven, 1 failed\n")
        assert f"{subject} has no subscriber" in done.stderr
        heard = await p.client.subscribe(subject)
        await p.client.ping()
        done = await p.run("redrive", *way, route="core")
        assert (done.returncode, done.stdout) == (0, "1 redriven, 0 failed\n"), done.stderr
        message = await heard.next(5)
        assert json.loads(message.payload) == {"number": 1}
        assert await p.sequences("DEAD") == []


async def test_dead_letters_are_purged_only_on_confirmation(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        for number in range(1, 301):
            await p.bury(number, route="orders" if number % 3 else "core", subject="orders.7")
        asked = await p.run("purge")
        assert asked.returncode == 2
        assert "add --yes" in asked.stderr
        dry = await p.run("purge", "--dry-run", "--limit", "2")
        assert dry.stdout.splitlines() == [
            "1 would be deleted",
            "2 would be deleted",
            "2 would be purged, 0 failed",
        ]
        assert (await p.run("purge", "--yes", "--limit", "100")).stdout == "100 purged, 0 failed\n"
        assert (await p.run("purge", "--yes")).stdout == "100 purged, 0 failed\n"
        assert Counter(number % 3 for number in await p.numbers("DEAD")) == {0: 100}


async def test_dead_letters_are_read_from_each_kind_of_stream(tmp_path: Path) -> None:
    """A consumer would remove messages from a work queue, or be refused."""
    async with place(tmp_path, retention="workqueue") as p:
        for number in range(1, 101):
            await p.bury(number)
        await p.streams.create_consumer("DEAD", "somebody")
        assert len((await p.run("list")).stdout.splitlines()) == 101
        assert (await p.run("redrive")).stdout == "100 redriven, 0 failed\n"
    async with place(tmp_path, deny_delete=True) as p:
        await p.bury(1)
        done = await p.run("redrive")
        assert done.returncode == 1
        assert "does not allow deletes (deny_delete)" in done.stderr
        assert await p.numbers("OUT") == []


async def test_only_the_named_sequences_are_redriven_listed_or_purged(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.bury_many(6)
        await p.bury(7, route="core", subject="calls.x")
        rows = (await p.run("list", "5", "2", "5")).stdout.splitlines()[1:]
        assert [row.split()[0] for row in rows] == ["2", "5"]
        done = await p.run("redrive", "2", "5")
        assert (done.returncode, done.stdout) == (0, "2 redriven, 0 failed\n"), done.stderr
        assert await p.numbers("OUT") == [2, 5]
        done = await p.run("purge", "6", "--dry-run")
        assert (done.returncode, done.stdout) == (0, "6 would be deleted\n1 would be purged, 0 failed\n"), done.stderr
        done = await p.run("purge", "3", "4", "--where", "body.number == 3", "--yes")
        assert (done.returncode, done.stdout) == (0, "1 purged, 0 failed\n"), done.stderr
        assert await p.sequences("DEAD") == [1, 4, 6, 7]


async def test_a_named_sequence_that_is_missing_is_reported_and_the_others_are_redriven(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.bury_many(2)
        await p.bury(3, route="core", subject="calls.x")
        done = await p.run("redrive", "2", "3", "77")
        assert (done.returncode, done.stdout) == (1, "1 redriven, 2 failed\n")
        cure = 'for a sequence of the source use --where \'headers["Router-Dead-Letter-Sequence"] == "77"\''
        assert "dead letter 3: not a dead letter of route orders in stream DEAD" in done.stderr
        assert "dead letter 77: not found in stream DEAD" in done.stderr
        assert cure in done.stderr
        assert cure in (await p.run("show", "77")).stderr
        assert await p.sequences("DEAD") == [1, 3]


async def test_a_handler_that_cannot_be_imported_is_refused_with_its_file_and_key(tmp_path: Path) -> None:
    text = CONFIG.format(url="nats://127.0.0.1:1")
    (tmp_path / "router.toml").write_text(
        text + '[[routes]]\nname = "handled"\nhandler = "nowhere:handle"\nfrom = {subject="a"}\nto = [{subject="b"}]\n'
        'dead_letter = {subject="dead.handled"}\n'
    )
    done = command("dead-letters", "router.toml", "handled", "redrive", cwd=tmp_path)
    assert done.returncode == 78
    assert "router.toml: routes[2].handler: handler 'nowhere:handle': can't import 'nowhere'" in done.stderr


async def test_wrong_usage_is_reported(tmp_path: Path) -> None:
    text = CONFIG.format(url="nats://127.0.0.1:1")
    (tmp_path / "router.toml").write_text(
        text + '[[routes]]\nname = "bare"\nfrom = {subject="a"}\nto = [{subject="b"}]\n'
    )
    cases: Sequence[tuple[tuple[str, ...], str, int, str]] = [
        (("show",), "orders", 2, "show needs a SEQUENCE, as list prints it"),
        (("show", "1", "2"), "orders", 2, "show takes only one SEQUENCE"),
        (("purge", "0"), "orders", 2, "SEQUENCE 0: must be at least 1"),
        (("list", "--limit", "0"), "orders", 2, "--limit: 0 is too small; give at least 1"),
        (("list", "--where", "body.x =="), "orders", 2, "--where, line 1, column "),
        (("list",), "order", 2, "did you mean 'orders'?"),
        (("purge", "--to-source"), "orders", 2, "--to-source can only be used with redrive"),
        (("list", "--foreign"), "orders", 2, "--foreign can only be used with redrive"),
        (("list",), "bare", 78, "router.toml: routes[2].dead_letter: missing; route 'bare' has no dead letters (line "),
        (("list",), "orders", 1, "connection refused by 127.0.0.1:1; is the server running?"),
    ]
    for arguments, route, code, text in cases:
        done = await dead_letters(route, *arguments, cwd=tmp_path)
        assert done.returncode == code, (arguments, done.stderr)
        assert text in done.stderr, (arguments, done.stderr)
