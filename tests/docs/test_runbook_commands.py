"""The commands on runbooks and pages for operators work as described there: each is run, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from router_trio.subjects.partitions import Partitioning
from tests.docs.pages import DOCS
from tests.docs.test_commands import COMMANDS, tokens
from tests.integration.test_partitions_command import shared_by
from tests.support.command import dead_letters, in_process, over_its_links
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import nats_server

pytestmark = pytest.mark.slow

NOT_RUN_HERE = {
    "run": "it is what the other commands are for",
    "demo": "it takes a minute, and has a test of its own",
    "top": "it needs a running router; the drill runs it",
}

OVER_LINKS = ("audit", "find", "partitions", "replay", "resume")

CONFIG = """
[connections.main]
servers = ["{url}"]
[[routes]]
name = "orders"
[routes.from]
stream = "ORDERS"
durable = "router"
filter = "orders.>"
[routes.retry]
attempts = 5
[routes.dead_letter]
subject = "dead.orders"
[[routes.to]]
subject = "eu.orders"
jetstream = true
"""
LETTER = {
    "Router-Dead-Letter-Route": "orders",
    "Router-Dead-Letter-Reason": "handler_error",
    "Router-Dead-Letter-Attempts": "5",
    "Router-Dead-Letter-Subject": "orders.7.created",
    "Router-Dead-Letter-Stream": "ORDERS",
    "Router-Dead-Letter-Time": "2026-11-26T10:00:00.000Z",
}
PLACES = {
    "CONFIG": "router.toml",
    "ROUTE": "orders",
    "SUBJECT": "orders.7.created",
    "/etc/router-trio/router.toml": "router.toml",
    "router.old.toml": "router.toml",
}


def of_operators() -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each page with such commands, and their arguments in order."""
    for folder in ("runbooks", "operations"):
        for path in sorted((DOCS / folder).glob("*.md")):
            name = f"docs/{folder}/{path.name}:"
            found = [tokens(arguments) for where, arguments in COMMANDS if where.startswith(name)]
            run = [one for one in found if one[0] not in NOT_RUN_HERE]
            if run:
                yield f"{folder}/{path.name}", run


PAGES = dict(of_operators())


@pytest.mark.parametrize("page", PAGES)
async def test_each_command_of_a_page_succeeds(page: str, tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        (tmp_path / "router.toml").write_text(CONFIG.format(url=server.url))
        streams = JetStream(client)
        for name, subject in (("ORDERS", "orders.>"), ("DEAD", "dead.*"), ("EU", "eu.*")):
            await streams.create_stream(name, [subject])
        for number in range(1, 21):
            await streams.publish("dead.orders", b"{}", LETTER | {"Router-Dead-Letter-Sequence": str(number)})
        await streams.create_consumer("ORDERS", "router", filter_subject="orders.>")
        await streams.publish("orders.7.created", b"{}", {})
        if any(arguments[0] == "partitions" for arguments in PAGES[page]):
            text = CONFIG.format(url=server.url).replace('filter = "orders.>"', 'filter = "orders.>"\npartitions = 4')
            (tmp_path / "router.toml").write_text(text)
            await shared_by(streams, Partitioning(4, (), ("orders.>",)), {"5f" * 8: range(4)})
        for arguments in PAGES[page]:
            typed = [PLACES.get(one, one) for one in arguments]
            if typed == ["check"] or typed == ["explain"]:
                continue  # the name of the command alone
            if typed[:2] == ["dead-letters", "router.toml"]:
                done = await dead_letters(*typed[2:], cwd=tmp_path)
            elif "--last" in typed or "--online" in typed or typed[0] in OVER_LINKS:
                done = await over_its_links(*typed, cwd=tmp_path)
            else:
                done = await trio.to_thread.run_sync(partial(in_process, *typed, cwd=tmp_path))
            assert done.returncode == 0, (typed, done.stdout, done.stderr)
            assert done.stdout, typed


def test_the_runbook_inspects_and_redrives_given_up_messages() -> None:
    actions = [one[3] for one in PAGES["runbooks/RouterMessagesDeadLettered.md"] if one[0] == "dead-letters"]
    assert list(dict.fromkeys(actions))[:3] == ["list", "show", "redrive"]
    stored = PAGES["runbooks/RouterDeadLettersNotStored.md"]
    assert "list" in [one[3] for one in stored if one[0] == "dead-letters"]
