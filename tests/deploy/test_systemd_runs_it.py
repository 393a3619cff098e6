"""A real systemd, process 1 of namespaces of its own, runs the unit: start, watchdog, and stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from router_trio.embedded import HOST
from tests.deploy.test_systemd import COMMAND, UNIT
from tests.support.command import ROOT
from tests.support.servers import NatsServer

SYSTEMD = "/usr/lib/systemd/systemd"
NAMESPACES = ["unshare", "--fork", "--pid", "--mount-proc", "--mount", "--cgroup"]
WITHIN = 60.0

START = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system/router-trio.service.d
cp "$FOLDER/router-trio.service" /run/systemd/system/
cp "$FOLDER/test.conf" /run/systemd/system/router-trio.service.d/
export container=docker
exec "$SYSTEMD" --system --log-target=console --unit=router-trio.service
"""

# The settings left out need a complete machine: users made for a service, and mounts below those of these namespaces.
DROP_IN = """
[Unit]
DefaultDependencies=no
[Service]
ExecStart=
ExecStart={python} -m router_trio run {folder}/router.toml
Environment=PYTHONPATH={root}
StandardOutput=append:{folder}/log
StandardError=append:{folder}/log
WatchdogSec=2s
DynamicUser=no
PrivateUsers=no
PrivateTmp=no
ProtectHome=no
ProtectSystem=no
"""


def can_start() -> bool:
    """Return True if this user can create namespaces for a process, and there is a systemd to run in them."""
    if sys.platform != "linux" or os.geteuid() != 0 or not Path(SYSTEMD).exists() or shutil.which("nsenter") is None:
        return False
    tried = [*NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/run"]
    try:
        return subprocess.run(tried, capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Machine:
    """The running systemd."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder = folder
        self._pid = pid

    async def run(self, *command: str) -> str:
        """Run a command inside, and return its output; "" if it fails."""
        entered = ["nsenter", "-t", str(self._pid), "-m", "-p", "-C", *command]
        done = await trio.run_process(entered, capture_stdout=True, capture_stderr=True, check=False)
        return done.stdout.decode().strip() if done.returncode == 0 else ""

    async def show(self, name: str) -> str:
        """Return a property of the service."""
        return await self.run("systemctl", "show", "router-trio", "--property", name, "--value")

    async def until(self, **wanted: str) -> None:
        """Wait until properties of the service have, or begin with, these values. Raises `trio.TooSlowError`."""
        with trio.fail_after(WITHIN):
            while not all([(await self.show(name)).startswith(value) for name, value in wanted.items()]):
                await trio.sleep(0.1)


@asynccontextmanager
async def machine(folder: Path, config: str) -> AsyncIterator[Machine]:
    """Start systemd with the unit. Everything in its namespaces is killed at the end."""
    (folder / "router.toml").write_text(config)
    (folder / UNIT.name).write_text(UNIT.read_text(encoding="utf-8"))
    python = sys.executable
    (folder / "test.conf").write_text(DROP_IN.format(python=python, folder=folder, root=ROOT))
    command = [*NAMESPACES, "--kill-child", "sh", "-c", START]
    with (folder / "console").open("wb") as console:
        outer = await trio.lowlevel.open_process(
            command,
            env={**os.environ, "FOLDER": str(folder), "SYSTEMD": SYSTEMD},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    try:
        children = trio.Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        with trio.fail_after(WITHIN):
            while not (inner := await children.read_text()):
                await trio.sleep(0.05)
        yield Machine(folder, int(inner.split()[0]))
    finally:
        with trio.CancelScope(shield=True):
            outer.kill()
            await outer.wait()


@pytest.mark.skipif(not can_start(), reason="needs root, namespaces and systemd")
async def test_systemd_runs_the_unit_from_its_start_to_its_stop(core_server: NatsServer, tmp_path: Path) -> None:
    config = (
        f'[telemetry]\nlisten = ""\n[connections.main]\nservers = ["nats://{HOST}:{core_server.port}"]\n'
        'reconnect_delay = "50ms"\nmax_reconnect_delay = "200ms"\n'
        '[[routes]]\nname = "orders"\nfrom = { subject = "in.*" }\nto = [ { subject = "out.$1" } ]\n'
    )
    assert f"ExecStart={COMMAND} run" in UNIT.read_text(encoding="utf-8")
    await core_server.kill()
    async with machine(tmp_path, config) as at:
        # Not ready, with the reason: its server is away.
        await at.until(ActiveState="activating", StatusText="waiting: connection main: ")
        await core_server.restart()
        await at.until(ActiveState="active", SubState="running", StatusText="routing: 1 of 1 routes")
        # A router that hangs is killed and restarted; before that it has been alive for longer than WatchdogSec.
        await trio.sleep(3)
        assert await at.show("NRestarts") == "0"
        await at.run("kill", "-STOP", await at.show("MainPID"))
        await at.until(ActiveState="active", NRestarts="1", StatusText="routing: 1 of 1 routes")
        # It drains when it is stopped.
        await at.run("systemctl", "stop", "router-trio")
        await at.until(ActiveState="inactive", Result="success", ExecMainStatus="0")
        # A failure that a restart can't repair does not restart it.
        (tmp_path / "router.toml").write_text("[router\n")
        await at.run("systemctl", "start", "router-trio")
        await at.until(ActiveState="failed", ExecMainStatus="78", NRestarts="0")
    assert "ROUTER_DRAINING" in (tmp_path / "log").read_text()
