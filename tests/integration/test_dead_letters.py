"""`router-trio dead-letters` against a real server: what it lists and shows, and that what it redrives arrives once."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.support.command import COMMAND, command, environment
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
        at = "dead.core" if route == "core" else "dead.7"
        await self.streams.publish(at, json.dumps({"number": number}).encode(), headers)

    async def run(self, *arguments: str, route: str = "orders") -> Result:
        """The command, to its end."""
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


async def test_they_are_listed_and_shown(tmp_path: Path) -> None:
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


async def test_a_redriven_message_arrives_once_as_it_was(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        for number in range(1, 4):
            await p.bury(number)
        await p.bury(4, route="core", subject="calls.x")
        dry = await p.run("redrive", "--dry-run")
        assert dry.stdout.splitlines()[0] == "1 would go to orders.7"
        assert dry.stdout.splitlines()[-1] == "3 would be redriven, 0 failed"
        assert await p.numbers("ORDERS") == []
        done = await p.run("redrive", "--where", 'body.number != 2 && headers["X-Shop"] == "north"')
        assert (done.returncode, done.stdout) == (0, "2 redriven, 0 failed\n"), done.stderr
        messages = await p.streams.stream_messages("ORDERS")
        assert [message.subject for message in messages] == ["orders.7", "orders.7"]
        assert [json.loads(message.payload)["number"] for message in messages] == [1, 3]
        for message in messages:
            names = [name for name, _ in message.headers if not name.startswith("Router-Dead-Letter-")]
            assert sorted(names) == ["Nats-Msg-Id", "Router-Redriven", "X-Shop"]
            assert message.header("Router-Redriven") == "1"
            assert message.header("Router-Dead-Letter-Reason") == "handler_error", "its history"
        assert await p.sequences("DEAD") == [2, 4]


async def test_a_redrive_that_was_cut_short_is_finished_by_the_next_one(tmp_path: Path) -> None:
    """Killed at any point: each arrives once, and none is left."""
    count = 2_000
    async with place(tmp_path) as p:
        for number in range(count):
            await p.bury(number)
        seen: list[int] = []
        for _ in range(3):
            process = await trio.lowlevel.open_process(
                [*COMMAND, "dead-letters", "router.toml", "orders", "redrive"],
                cwd=tmp_path,
                env=environment(),
                stdout=subprocess.DEVNULL,
            )
            before = (await p.streams.stream_info("ORDERS"))["state"]["messages"]

            async def more(before: int = before) -> bool:
                return bool((await p.streams.stream_info("ORDERS"))["state"]["messages"] > before + 50)

            await eventually(more, 20)
            process.kill()
            await process.wait()
            seen.append((await p.streams.stream_info("DEAD"))["state"]["messages"])
        assert count > seen[0] > seen[1] > seen[2] > 0, "each was killed in the middle"
        done = await p.run("redrive")
        assert done.returncode == 0, done.stderr
        assert await p.sequences("DEAD") == []
        assert sorted(await p.numbers("ORDERS")) == list(range(count))


async def test_a_signal_ends_it_behind_what_is_under_way(tmp_path: Path) -> None:
    count = 3_000
    async with place(tmp_path) as p:
        for number in range(count):
            await p.bury(number)
        process = await trio.lowlevel.open_process(
            [*COMMAND, "dead-letters", "router.toml", "orders", "redrive"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
        )

        async def begun() -> bool:
            return bool((await p.streams.stream_info("ORDERS"))["state"]["messages"])

        await eventually(begun, 20)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        said = b"".join([part async for part in process.stdout]).decode()
        assert await process.wait() == 130
        redriven = int(said.split()[0])
        assert 0 < redriven < count
        assert len(await p.sequences("DEAD")) == count - redriven
        assert await p.numbers("ORDERS") == list(range(redriven)), "in order"


async def test_what_can_not_go_back_stays_and_is_told(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.bury(1, subject="$JS.API.STREAM.DELETE.OUT")
        await p.bury(2, subject="payments.7")
        await p.bury(3)
        done = await p.run("redrive")
        assert (done.returncode, done.stdout) == (1, "1 redriven, 2 failed\n")
        assert "dead letter 1: its subject '$JS.API.STREAM.DELETE.OUT' is none that the route reads" in done.stderr
        assert await p.sequences("DEAD") == [1, 2]
        await p.streams.delete_stream("ORDERS")
        await p.bury(4)
        done = await p.run("redrive", "--where", "body.number == 4")
        assert done.returncode == 1
        assert "it was not stored: no_responders" in done.stderr
        assert len(await p.sequences("DEAD")) == 3
        failing = await p.run("list", "--where", "body.missing == 1")
        assert failing.returncode == 1
        assert "--where failed" in failing.stderr


async def test_a_core_message_goes_back_only_if_somebody_listens(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        await p.bury(1, route="core", subject="calls.x")
        done = await p.run("redrive", route="core")
        assert (done.returncode, done.stdout) == (1, "0 redriven, 1 failed\n")
        assert "nobody subscribes to calls.x" in done.stderr
        heard = await p.client.subscribe("calls.*")
        await p.client.ping()
        done = await p.run("redrive", route="core")
        assert (done.returncode, done.stdout) == (0, "1 redriven, 0 failed\n"), done.stderr
        message = await heard.next(5)
        assert json.loads(message.payload) == {"number": 1}
        assert await p.sequences("DEAD") == []


async def test_they_are_purged_if_that_is_meant(tmp_path: Path) -> None:
    async with place(tmp_path) as p:
        for number in range(1, 301):
            await p.bury(number, route="orders" if number % 3 else "core", subject="orders.7")
        asked = await p.run("purge")
        assert asked.returncode == 2
        assert "say --yes" in asked.stderr
        dry = await p.run("purge", "--dry-run", "--limit", "2")
        assert dry.stdout.splitlines() == [
            "1 would be deleted",
            "2 would be deleted",
            "2 would be purged, 0 failed",
        ]
        assert (await p.run("purge", "--yes", "--limit", "100")).stdout == "100 purged, 0 failed\n"
        assert (await p.run("purge", "--yes")).stdout == "100 purged, 0 failed\n"
        assert Counter(number % 3 for number in await p.numbers("DEAD")) == {0: 100}


async def test_each_kind_of_stream_is_read(tmp_path: Path) -> None:
    """A consumer would take messages from a work queue, or be refused."""
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
        assert "denies the deletion" in done.stderr
        assert await p.numbers("ORDERS") == []


async def test_wrong_usage_is_told(tmp_path: Path) -> None:
    def told(*arguments: str, route: str = "orders") -> tuple[int, str]:
        done = command("dead-letters", "router.toml", route, *arguments, cwd=tmp_path)
        return done.returncode, done.stderr

    text = CONFIG.format(url="nats://127.0.0.1:1")
    (tmp_path / "router.toml").write_text(
        text + '[[routes]]\nname = "bare"\nfrom = {subject="a"}\nto = [{subject="b"}]\n'
    )
    cases: Sequence[tuple[tuple[str, ...], str, int, str]] = [
        (("show",), "orders", 2, "show needs the SEQUENCE"),
        (("list", "1"), "orders", 2, "list takes no SEQUENCE"),
        (("list", "--limit", "0"), "orders", 2, "must be at least 1"),
        (("list", "--where", "body.x =="), "orders", 2, "--where: "),
        (("list",), "order", 2, "did you mean 'orders'?"),
        (("list",), "bare", 78, "routes[2].dead_letter: missing"),
        (("list",), "orders", 1, "connection refused by 127.0.0.1:1; is the server running?"),
    ]
    for arguments, route, code, text in cases:
        found = told(*arguments, route=route)
        assert found[0] == code, (arguments, found)
        assert text in found[1], (arguments, found)
