"""The `audit` command: its output, its errors, and how it ends early."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from tests.integration.test_audit import place
from tests.support.command import COMMAND, environment, over_its_links
from tests.support.eventually import eventually
from tests.support.servers import NatsServer, nats_server


async def test_json_of_a_dry_run_is_alone_on_stdout(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(5)
        await here.delete("SINK", 2)
        arguments = ("audit", "router.toml", "copy", "--repair", "--dry-run", "--json")
        result = await over_its_links(*arguments, cwd=tmp_path)
        assert json.loads(result.stdout)["counts"]["missing"] == 1
        assert "would publish sink.1 to connection main" in result.stderr


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the command and return its process."""
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *arguments], cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True)


async def test_an_interrupted_audit_reports_where_to_continue(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(3000)
        await here.delete("SINK", 5)
        process = started("audit", "router.toml", "copy", "--rate", "1000", cwd=tmp_path)

        async def has_read_a_third() -> bool:
            clients = (await server.monitor("/connz"))["connections"]
            return any(" audit" in one.get("name", "") and one["out_msgs"] > 2000 for one in clients)

        await eventually(has_read_a_third, 60)
        process.send_signal(signal.SIGINT)
        output, errors = await trio.to_thread.run_sync(process.communicate)
        assert (process.returncode, output) == (130, "")
        found = re.search(r"ended after message ([\d,]+); continue with --from (\d+), but 1 earlier copy", errors)
        assert found, errors
        reached = int(found[1].replace(",", ""))
        assert int(found[2]) == reached + 1 < 3000
        assert "not found yet, the first one of message 5" in errors
        code, report = await here.command("--from", found[2])
        assert (code, report["messages"]) == (0, 3000 - reached)


PERMITTED = """
authorization {{ users = [
  {{ user: all, password: all }}
  {{ user: audit, password: audit, permissions: {{ publish: {{ deny: ["{denied}"] }} }} }}
] }}
"""


@pytest.mark.parametrize(
    "denied", ["$JS.API.STREAM.MSG.GET.SINK", "$JS.API.STREAM.INFO.SINK", "$JS.API.CONSUMER.INFO.SOURCE.router"]
)
async def test_a_missing_permission_is_named(tmp_path: Path, denied: str) -> None:
    async with nats_server(tmp_path, config=PERMITTED.format(denied=denied)) as server:
        everything = server.url.replace("nats://", "nats://all:all@")
        async with place(tmp_path, server, url=everything) as here:
            await here.copied(5)
            text = (tmp_path / "router.toml").read_text().replace("all:all@", "audit:audit@")
            (tmp_path / "router.toml").write_text(text)
            result = await over_its_links("audit", "router.toml", "copy", cwd=tmp_path)
            assert (result.returncode, result.stdout) == (1, "")
            assert f"this user may not publish to {denied}" in result.stderr


async def test_a_server_that_cannot_be_reached_is_an_error(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.url = "nats://127.0.0.1:1"
        here.configure()
        result = await over_its_links("audit", "router.toml", "copy", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert "connection 'main'" in result.stderr


async def test_a_durable_that_does_not_exist_is_an_error(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.configure()
        result = await over_its_links("audit", "router.toml", "copy", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert "stream SOURCE has no consumer router" in result.stderr
