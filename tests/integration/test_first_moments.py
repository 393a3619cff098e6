"""A command before it is ready: interrupted during its imports, and started without standard streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.support.command import COMMAND, environment
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

CONFIG = """
[telemetry]
listen = ""
[connections.main]
servers = ["URL"]
[[routes]]
name = "orders"
from = { subject = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
"""

INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

module = sys.argv.pop(1)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
runpy.run_module("router_trio", run_name="__main__", alter_sys=True)
"""


BOTH = ["router_trio.cli", "argparse", "pydantic"]
ONLY_RUN = ["router_trio.cli.run.command", "trio", "router_trio.nats"]
ONLY_CHECK = ["router_trio.settings.checks.circles"]


@pytest.mark.parametrize(
    ("command", "module"),
    [
        *((["run", "router.toml"], one) for one in BOTH + ONLY_RUN),
        *((["check", "router.toml"], one) for one in BOTH + ONLY_CHECK),
    ],
)
def test_ctrl_c_during_imports_prints_no_traceback(tmp_path: Path, module: str, command: list[str]) -> None:
    (tmp_path / "router.toml").write_text(CONFIG.replace("URL", "nats://127.0.0.1:1"))
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module, *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
        env=environment(),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


WITHOUT_STREAMS = """
import os, sys
for number in map(int, sys.argv[1].split(",")):
    os.close(number)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("closed", ["0,1,2", "1", "2", "0"])
async def test_a_router_runs_without_standard_streams(core_server: NatsServer, tmp_path: Path, closed: str) -> None:
    path = tmp_path / "router.toml"
    path.write_text(CONFIG.replace("URL", core_server.url))
    python = [sys.executable, "-c", WITHOUT_STREAMS, closed, *COMMAND]
    null = os.open(os.devnull, os.O_RDWR)
    process = await trio.lowlevel.open_process(
        [*python, "run", str(path)], stdin=null, stdout=null, stderr=null, env=environment(), cwd=tmp_path
    )
    os.close(null)
    try:
        async with connect(core_server.url) as client:
            heard = await client.subscribe("eu.*")
            with trio.fail_after(20):
                while not heard.waiting():
                    assert process.poll() is None
                    await client.publish("orders.1", b"x")
                    await trio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(20):
            assert await process.wait() == 0
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()


@pytest.mark.parametrize("command", [["check", "router.toml"], ["schema"], ["--version"], ["--help"]])
def test_other_commands_work_without_standard_streams(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "router.toml").write_text(CONFIG.replace("URL", "nats://127.0.0.1:1"))
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_STREAMS, "0,1,2", *COMMAND, *command],
        timeout=30,
        check=False,
        cwd=tmp_path,
        env=environment(),
    )
    assert ended.returncode == 0
