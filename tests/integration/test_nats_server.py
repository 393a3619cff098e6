"""The nats-server of the tests, and the check of what a test leaves behind."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from router_trio.embedded import reserve_port
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import NoResponders, connect
from tests.support.servers import NatsServer, cluster, nats_server

T = TypeVar("T")


NO_LEADER = (trio.TooSlowError, JetStreamError)
"""Answers of the JetStream API while a cluster elects a leader: silence, or an error."""


async def _answered(ask: Callable[[], Awaitable[T]], within: float = 30.0) -> T:
    """Return the answer, once it is not that there is no leader."""
    with trio.fail_after(within):
        while True:
            try:
                return await ask()
            except NO_LEADER:
                await trio.sleep(0.02)


async def test_make_quick_excludes_tests_that_start_servers(
    core_server: NatsServer, request: pytest.FixtureRequest
) -> None:
    assert request.node.get_closest_marker("slow")


def test_a_test_that_leaves_something_behind_fails(tmp_path: Path) -> None:
    (tmp_path / "test_careless.py").write_text(
        "import subprocess, threading, trio\n"
        "async def test_child():\n"
        "    globals()['kept'] = subprocess.Popen(['sleep', '600'])\n"
        "async def test_zombie():\n"
        "    kept.kill()\n"
        "    globals()['ended'] = subprocess.Popen(['true'])\n"
        "async def test_thread():\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True, name='lost').start()\n"
        "async def test_tidy():\n"
        "    await trio.to_thread.run_sync(subprocess.run, ['true'])\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-o",
        "trio_mode=true",
        "--rootdir",
        str(tmp_path),
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=30, check=False)
    assert "4 passed, 3 errors" in done.stdout
    left = re.findall(r"^E +AssertionError: (.*) left behind", done.stdout, re.MULTILINE)
    assert left == ["child processes", "child processes", "threads"]


class TestNatsServer:
    async def test_monitoring(self, server: NatsServer) -> None:
        async with connect(server.url):
            figures = await server.varz()
        assert figures["server_name"] == server.name
        assert figures["connections"] == 1

    async def test_core_only(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            with pytest.raises(NoResponders):
                await JetStream(client).stream_info("S")

    async def test_a_given_port(self, tmp_path: Path) -> None:
        with reserve_port() as port:
            pass
        async with nats_server(tmp_path, jetstream=False, port=port) as server:
            assert server.url == f"nats://127.0.0.1:{port}"

    async def test_a_frozen_server_is_silent_until_it_goes_on(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            server.stop()
            with pytest.raises(trio.TooSlowError):
                await client.ping(within=0.1)
            server.cont()
            await client.ping()

    async def test_lame_duck_is_announced_then_it_ends(self, tmp_path: Path) -> None:
        config = "lame_duck_grace_period: 1s\nlame_duck_duration: 30s\n"
        async with nats_server(tmp_path, config=config) as server, connect(server.url) as client:
            server.lame_duck()
            with trio.fail_after(10):
                await client.closed()
            assert client.info["ldm"] is True

    async def test_reload_applies_the_new_configuration(self, server: NatsServer) -> None:
        await server.reload("max_payload: 2048\n")
        assert (await server.varz())["max_payload"] == 2048
        await server.kill()
        await server.restart()
        assert (await server.varz())["max_payload"] == 2048

    async def test_a_refused_reload_is_reported(self, server: NatsServer) -> None:
        with pytest.raises(AssertionError, match="no_such_option"):
            await server.reload("no_such_option: 1\n")

    async def test_streams_take_messages_once_created(self, tmp_path: Path) -> None:
        names = [f"R3-{number}" for number in range(30)]
        async with cluster(tmp_path) as group, connect(group.urls[0]) as client:
            js = JetStream(client)
            for name in names:
                await js.create_stream(name, [f"{name}.*"], num_replicas=3)
                assert (await js.publish(f"{name}.1"))["seq"] == 1

    async def test_a_cluster_holds_r3_streams_and_survives_its_leader(self, tmp_path: Path) -> None:
        async with cluster(tmp_path) as group:
            async with connect(group.urls[0]) as client:
                js = JetStream(client)
                info = await js.create_stream("R3", ["r3"], num_replicas=3)
                assert len(info["cluster"]["replicas"]) == 2
                await js.publish("r3", b"kept")
            leader = await group.stream_leader("R3")
            await leader.kill()
            with trio.fail_after(30):
                assert (await group.stream_leader("R3")) is not leader
            survivor = next(server for server in group.servers if server.is_running)
            async with connect(survivor.url) as client:
                # The stream has a leader again; the cluster may not, if the killed server led it.
                stored = await _answered(lambda: JetStream(client).stream_messages("R3"))
                assert [message.payload for message in stored] == [b"kept"]
            await leader.restart()
            await group.ready()
