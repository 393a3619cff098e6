"""Audits, repairs and searches of a route whose messages wait for their next attempts, on a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router_trio import Router, Settings
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer

pytestmark = [pytest.mark.slow, needs_server(2, 14, lacks="cancellation of schedules by a message")]

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "copy"
from = {{ stream = "SOURCE", durable = "router", filter = "source.*" }}
to = [{{ subject = "sink.{{{{wildcard(1)}}}}", jetstream = true }}]
[routes.retry]
initial = "8760h"
max = "8760h"
schedule = {{ stream = "RETRY", prefix = "retry", after = "10ms" }}
"""


async def test_a_message_that_waits_is_pending_and_only_a_lost_one_is_repaired(
    tmp_path: Path, server: NatsServer
) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=server.url))
    settings = Settings.load(tmp_path / "router.toml")

    async def run(*arguments: str) -> tuple[int, Any]:
        """Run a command, and return its exit code and what it prints."""
        result = await over_its_links(*arguments, cwd=tmp_path)
        assert result.stdout, result.stderr
        return result.returncode, [json.loads(line) for line in result.stdout.splitlines()]

    async def audit(*arguments: str) -> tuple[int, dict[str, int]]:
        code, (report,) = await run("audit", "router.toml", "copy", "--json", *arguments)
        return code, {name: count for name, count in report["counts"].items() if count}

    async def found(number: int) -> str:
        _, (report,) = await run("find", "router.toml", f"source.{number}", "--json")
        (message,) = report["messages"]
        (route,) = message["routes"]
        return str(route["outcome"])

    async with connect(server.url) as client:
        streams = JetStream(client)
        await streams.create_stream("SOURCE", ["source.*"])
        await streams.create_stream("SINK", ["sink.*"], max_msg_size=10)  # smaller than the headers of a copy
        await streams.create_stream("RETRY", ["retry.>"], allow_msg_schedules=True)
        await streams.publish_many((f"source.{n}", b"%d" % n, None) for n in range(5))
        async with Router(settings, log=False).open() as live:
            await eventually(lambda: live.routes[0].settled["scheduled"] == 5, 30.0)
        await streams.edit_stream("SINK", max_msg_size=-1)
        assert await audit() == (0, {"pending": 5})
        assert await audit("--repair") == (0, {"pending": 5})
        assert await found(1) == "waiting"
        _, schedules = await run("schedules", "router.toml", "copy", "list", "--json")
        places = {one["subject"]: str(one["sequence"]) for one in schedules}
        await run("schedules", "router.toml", "copy", "cancel", places["source.1"], "--json")
        assert await audit() == (1, {"pending": 4, "missing": 1})
        assert await found(1) == "missing"
        assert await audit("--repair") == (0, {"pending": 4, "there": 1})
        await run("schedules", "router.toml", "copy", "fire", places["source.2"], "--json")
        assert await audit("--repair") == (0, {"pending": 4, "there": 1})
        assert await found(2) == "waiting"
        async with Router(settings, log=False).open() as live:
            await eventually(lambda: live.routes[0].settled["routed"] == 1, 30.0)
        assert await audit("--repair") == (0, {"pending": 3, "there": 2})
        assert [one.subject for one in await streams.stream_messages("SINK")] == ["sink.1", "sink.2"]
