"""Each command with the permissions of the table, and with each left out: it then fails, and names the subject."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router_trio import Router, Settings
from router_trio.nats import partitions_change, requests
from router_trio.protocol.headers import decode
from router_trio.protocol.permissions import OF_COMMANDS, CommandPermission
from router_trio.subjects.partitions import Partitioning
from tests.integration.readiness import refused
from tests.integration.test_dead_letters import dead_letter
from tests.integration.test_partitions_command import shared_by
from tests.support.command import in_process, over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.retries import waiting
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server
from tests.support.watch import until_stored

pytestmark = needs_server(2, 11, lacks="pause of consumers")

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
user = "{user}"
password = "{user}"
connect_timeout = "20s"
[[routes]]
name = "orders"
from = {{ stream = "ORDERS", durable = "router", filter = "orders.*" }}
dead_letter = {{ subject = "dead.{{{{wildcard(1)}}}}" }}
to = [ {{ subject = "out.{{{{wildcard(1)}}}}", jetstream = true }} ]
"""

NAMES = {
    "api": "$JS.API",
    "kv": "$KV",
    "stream": "ORDERS",
    "durable": "router",
    "target": "OUT",
    "letters": "DEAD",
    "consumer": "billing",
    "bucket": "router-positions",
    "destination": "out.*",
    "subject": "orders.7",
    "inbox_prefix": "_INBOX",
    "prefix": "retry",
    "route": "orders",
    "retries": "RETRY",
    "due": "retry-orders",
}

ARGUMENTS = {
    "audit": "audit router.toml orders",
    "audit --repair": "audit router.toml orders --repair",
    "dead-letters list": "dead-letters router.toml orders list",
    "dead-letters purge": "dead-letters router.toml orders purge --yes",
    "dead-letters redrive": "dead-letters router.toml orders redrive",
    "diff --last": "diff router.toml other.toml --last 10 orders",
    "find": "find router.toml orders.7",
    "partitions": "partitions shared.toml orders",
    "partitions --move": "partitions shared.toml orders --move 1 --to 5f",
    "partitions --change": "partitions changed.toml orders --change",
    "partitions --change --apply": "partitions changed.toml orders --change --apply",
    "pause": "pause router.toml orders --for 1h",
    "position": "position router.toml orders --consumer billing",
    "position --apply": "position router.toml orders --consumer billing --apply",
    "replay": "replay router.toml orders --from 1 --new-ids",
    "resume": "resume router.toml orders",
    "schedules list": "schedules later.toml orders list",
    "schedules cancel": "schedules later.toml orders cancel --all",
    "schedules fire": "schedules later.toml orders fire --all",
    "trace": "trace router.toml orders.7",
}

INBOX = "_INBOX.>"
NOTHING = "nothing"
"""A subject that no command uses: an empty list would allow everything."""


def subjects_of(command: str, *, optional: bool = False) -> list[str]:
    """Return what a command publishes to, with what it does not need here only if `optional`."""
    names = NAMES | ({"target": "RETRY"} if command.startswith("schedules") else {})
    needs: Sequence[CommandPermission] = [one for one in OF_COMMANDS[command] if optional or not one.optional]
    return list(dict.fromkeys(one.subject.format_map(names) for one in needs))


def users(publish: Sequence[str], subscribe: Sequence[str]) -> str:
    given = json.dumps({"publish": {"allow": list(publish)}, "subscribe": {"allow": list(subscribe)}})
    return f"""
authorization {{ users: [
  {{ user: admin, password: admin }}
  {{ user: router, password: router, permissions: {given} }}
] }}
"""


async def prepare(command: str, server: NatsServer, streams: JetStream, folder: Path) -> None:
    """Create streams with copied messages, a dead letter and a consumer, and what the command is for."""
    await streams.create_stream("ORDERS", ["orders.*"])
    await streams.create_stream("OUT", ["out.*"])
    await streams.create_stream("DEAD", ["dead.*"])
    await streams.publish_many((f"orders.{number}", b"order", None) for number in (7, 8, 9))
    settings = Settings.parse(CONFIGURATION.format(url=server.url, user="admin").encode())
    async with Router(settings, log=False).open():
        await until_stored(streams, "OUT", 3)
    await streams.publish(*dead_letter(2, subject="orders.8"))
    await streams.create_consumer("ORDERS", "billing", ack_policy="explicit")
    hand = await streams.client.subscribe("hand")
    await streams.client.publish("$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing", b'{"batch": 1}', None, "hand")
    reply = (await hand.next()).reply
    assert reply is not None
    await streams.client.request(reply, b"+ACK")
    if command == "audit --repair":
        # Another stream, since one forgets ids by a timer: some 50 ms after its window, or later on a busy machine.
        first, second, _ = await streams.stream_messages("OUT")
        await streams.api("STREAM.DELETE.OUT")
        await streams.create_stream("OUT", ["out.*"])
        for one in (first, second):
            await streams.publish(one.subject, one.payload, one.headers)
    if command == "resume":
        await streams.pause_consumer("ORDERS", "router", 3600)
    text = CONFIGURATION.format(url=server.url, user="router")
    (folder / "router.toml").write_text(text)
    (folder / "other.toml").write_text(text.replace('"out.', '"out.other.'))
    (folder / "shared.toml").write_text(text.replace('filter = "orders.*"', 'filter = "orders.*", partitions = 2'))
    (folder / "changed.toml").write_text(text.replace('filter = "orders.*"', 'filter = "orders.*", partitions = 1'))
    retry = 'retry = { schedule = { stream = "RETRY", prefix = "retry" } }'
    (folder / "later.toml").write_text(text.replace('dead_letter = { subject = "dead.{{wildcard(1)}}" }', retry))
    if command.startswith("schedules"):
        await streams.create_stream("RETRY", ["retry.>"], allow_msg_schedules=True)
        for number in range(2):
            subject, block = waiting("orders", "orders.1", "ORDERS", number + 1, due_ns=2**62)
            await streams.publish(subject, b"waits", [*decode(block).pairs()])
    if command.startswith("partitions"):
        await shared_by(streams, Partitioning(2, (), ("orders.*",)), {"5f" * 8: (0, 1)})
    if command.startswith("partitions --change"):

        async def is_copied() -> bool:
            return bool((await streams.stream_info("ORDERS-router"))["state"]["messages"] == 3)

        await eventually(is_copied)
        await streams.api("STREAM.PURGE.ORDERS-router")  # as if all was settled


@asynccontextmanager
async def place(tmp_path: Path, command: str) -> AsyncIterator[NatsServer]:
    async with (
        nats_server(tmp_path, config=users([NOTHING], [NOTHING])) as server,
        connect(server.url, user="admin", password="admin") as client,
    ):
        await prepare(command, server, JetStream(client), tmp_path)
        yield server


@pytest.mark.parametrize("command", OF_COMMANDS)
async def test_a_command_needs_exactly_the_permissions_of_the_table(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "ANSWER_WITHIN", 2.0)
    monkeypatch.setattr(partitions_change, "NOTICED_WITHIN", 0.1)
    monkeypatch.setattr(partitions_change, "STORED_WITHIN", 0.1)
    arguments, needed = ARGUMENTS[command].split(), subjects_of(command)
    async with place(tmp_path, command) as server:
        for subject in needed:
            await server.reload(users([one for one in needed if one != subject], [INBOX]))
            result = await over_its_links(*arguments, cwd=tmp_path)
            assert result.returncode == 1, (subject, result.stdout, result.stderr)
            named = subject.removesuffix("*").removesuffix(">")
            assert re.search(rf"{re.escape(named)}", result.stderr), (subject, result.stderr)
            if command in {"audit", "find"}:
                assert f"`router-trio permissions CONFIG --for {command}` prints" in result.stderr
        await server.reload(users(needed, [NOTHING]))
        result = await over_its_links(*arguments, cwd=tmp_path)
        assert result.returncode == 1, (INBOX, result.stdout)
        assert "_INBOX." in result.stderr, result.stderr
        before = refused(server, "router")
        await server.reload(users(subjects_of(command, optional=True), [INBOX]))
        result = await over_its_links(*arguments, cwd=tmp_path)
        assert result.returncode == 0, (result.stdout, result.stderr)
        assert refused(server, "router") == before, "nothing else is refused"


def test_each_command_of_the_table_is_tested() -> None:
    assert {*ARGUMENTS} == {*OF_COMMANDS}


@pytest.mark.parametrize("command", OF_COMMANDS)
async def test_a_command_does_its_work_with_what_permissions_prints_for_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions_change, "NOTICED_WITHIN", 0.1)
    monkeypatch.setattr(partitions_change, "STORED_WITHIN", 0.1)
    arguments = ARGUMENTS[command].split()
    async with place(tmp_path, command) as server:
        file = next(one for one in arguments if one.endswith(".toml"))
        printed = in_process("permissions", file, "--for", command, cwd=tmp_path)
        assert printed.returncode == 0, printed.stderr
        block = printed.stdout.partition("\n")[2]
        await server.reload(
            "authorization { users: [\n{ user: admin, password: admin }\n"
            f"{{ user: router, password: router\n{block} }}\n] }}\n"
        )
        before = refused(server, "router")
        result = await over_its_links(*arguments, cwd=tmp_path)
        assert result.returncode == 0, (result.stdout, result.stderr, printed.stdout)
        assert refused(server, "router") == before
