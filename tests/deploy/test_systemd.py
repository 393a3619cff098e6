"""The systemd unit: systemd accepts it, rates it as safe, and a router works under all of its restrictions."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from router_trio import Settings
from router_trio.embedded import HOST, reserve_port
from tests.deploy.confined import system_calls, unit_settings
from tests.docs.pages import DOCS, page
from tests.support.command import ROOT, running
from tests.support.credentials import user_nkey
from tests.support.raw_nats import connect
from tests.support.servers import nats_server

UNIT = DOCS / "deploy" / "router-trio.service"
COMMAND = "/opt/router-trio/bin/router-trio"
EXPOSURE = 2.0
"""Upper bound of the exposure level of `systemd-analyze security`."""

WRITABLE_AND_EXECUTABLE = "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)"
FORBIDDEN = {
    "memory that is writable and executable": WRITABLE_AND_EXECUTABLE,
    "a raw packet socket": "import socket; socket.socket(17, socket.SOCK_RAW)",
    "another user's id": "import os; os.setuid(1)",
    "a higher priority": "import os; os.nice(-1)",
    "another root directory": "import os; os.chroot('/')",
}


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze to its end. Skips the test where there is none, and fails it in CI."""
    if shutil.which("systemd-analyze") is None:
        why = "no systemd-analyze in PATH: apt-get install --no-install-recommends systemd"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=30
    )


def confined(unit: Path = UNIT) -> list[str]:
    """Return the command that runs another one under the unit's restrictions. Skips the test where the kernel can't."""
    if sys.platform != "linux":
        pytest.skip("seccomp is of Linux")
    systemd_analyze("--version")
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 3):
        pytest.skip(f"Linux {os.uname().release} has no PR_SET_MDWE, which came with 6.3")
    return [sys.executable, "-m", "tests.deploy.confined", str(unit), sys.executable]


def test_systemd_accepts_every_line_of_the_unit(tmp_path: Path) -> None:
    there = tmp_path / UNIT.name
    there.write_text(UNIT.read_text().replace(COMMAND, "/bin/true"))
    done = systemd_analyze("verify", there)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_line_would_be_found(tmp_path: Path) -> None:
    there = tmp_path / UNIT.name
    there.write_text(UNIT.read_text().replace(COMMAND, "/bin/true").replace("ProtectClock=", "ProtectCloak="))
    assert "ProtectCloak" in systemd_analyze("verify", there).stderr


def test_systemd_rates_the_unit_as_safe() -> None:
    done = systemd_analyze("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", UNIT)
    assert done.returncode == 0, done.stdout


def test_the_page_shows_the_unit_verbatim() -> None:
    shown = next(block.text for block in page(DOCS / "how-to" / "systemd.md").blocks if block.language == "ini")
    assert shown == UNIT.read_text(encoding="utf-8")


def test_the_unit_waits_for_the_drain_and_does_not_restart_a_router_that_needs_repair(tmp_path: Path) -> None:
    sample = tmp_path / "router.toml"
    sample.write_text('[connections.main]\nservers = ["nats://127.0.0.1:4222"]\n')
    given = unit_settings(UNIT)
    assert "ExecStartPre" not in given, "its exit status is restarted for ever"
    assert (given["Type"], given["TimeoutStartSec"]) == (["notify"], ["infinity"])
    checks, says = given["ExecReload"]
    assert checks.endswith("router-trio check /etc/router-trio/router.toml"), (
        "systemctl reload fails if it is not valid"
    )
    assert says == "/bin/kill -HUP $MAINPID"
    assert int(given["TimeoutStopSec"][0].removesuffix("s")) >= Settings.load(sample).router.shutdown_timeout + 5
    assert given["RestartPreventExitStatus"] == ["2 78"]


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_each_forbidden_operation_is_refused(what: str) -> None:
    async with running("-c", FORBIDDEN[what], cwd=ROOT, python=confined()) as tried:
        assert await tried.ended() == 1
    assert "PermissionError" in tried.errors


def test_the_unit_allows_the_default_system_calls_of_services_and_no_more() -> None:
    systemd_analyze("--version")
    allowed = system_calls(unit_settings(UNIT)["SystemCallFilter"])
    assert {"epoll_wait", "futex", "execve", "mmap", "getrandom"} <= allowed
    assert not {"mount", "ptrace", "bpf", "kexec_load", "init_module", "setuid", "sched_setaffinity"} & allowed


async def test_a_router_works_under_the_restrictions(tmp_path: Path) -> None:
    """It logs in by NKey, routes, serves its metrics, and drains on SIGTERM."""
    router, everybody = user_nkey(), '{ user: "all", password: "all" }'
    users = f'authorization {{ users: [{{ nkey: "{router.public}" }}, {everybody}] }}\nno_auth_user: "all"\n'
    (tmp_path / "router.nk").write_text(router.seed)
    environment = {"ROUTER_TRIO_CONNECTIONS__MAIN__NKEY_SEED_FILE": str(tmp_path / "router.nk")}
    async with nats_server(tmp_path, config=users) as server:
        with reserve_port() as port:
            config = tmp_path / "router.toml"
            config.write_text(
                f'[telemetry]\nlisten = "{HOST}:{port}"\n[connections.main]\nservers = ["{server.url}"]\n'
                '[[routes]]\nname = "orders"\nfrom = { subject = "orders.*" }\n'
                'to = [ { subject = "eu.{{wildcard(1)}}" } ]\n'
            )
        command = [*confined(), "-m", "router_trio"]
        async with running("run", config, cwd=ROOT, env=environment, python=command) as run:
            await run.has_logged("ROUTER_READY")
            async with connect(server.url) as client:
                arrived = await client.subscribe("eu.*")
                await client.ping()
                await client.publish("orders.7", b"hello")
                assert (await arrived.next()).payload == b"hello"
            metrics = await fetched(port, "/metrics")
            counted = r'^router_messages_routed_total\{.*route="orders".*\} 1\.0$'
            assert re.search(counted, metrics, re.MULTILINE), metrics
            # Read from /proc, which some settings of systemd hide.
            assert "process_resident_memory_bytes" in metrics
            run.send(signal.SIGTERM)
            assert await run.ended() == 0
            (stopped,) = run.logged("ROUTER_STOPPED")
            assert stopped["unsettled"] == 0


async def fetched(port: int, path: str) -> str:
    """Return the router's answer."""
    stream = await trio.open_tcp_stream(HOST, port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        return b"".join([part async for part in stream]).decode()
