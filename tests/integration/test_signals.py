"""Signals: each that process managers send makes the router drain, even during the start; the start is bounded."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from router_trio import Router
from router_trio.router import run as router_run
from tests.support.command import COMMAND, ROOT, running
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import core_route, settings

CONFIG = """
[router]
shutdown_timeout = "20s"
[telemetry]
listen = ""
[connections.main]
servers = ["URL"]
connect_timeout = "60s"
liveness_interval = "60s"
[[routes]]
name = "orders"
from = { subject = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
[[routes]]
name = "stored"
from = { stream = "ORDERS", durable = "router", filter = "orders.*" }
to = [ { subject = "us.{{wildcard(1)}}" } ]
"""

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]


def configuration(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "router.toml"
    path.write_text(CONFIG.replace("URL", url))
    return path


@pytest.mark.parametrize("number", ALL)
async def test_every_signal_drains_and_logs_the_ledger(
    server: NatsServer, tmp_path: Path, number: signal.Signals
) -> None:
    async with running("run", configuration(tmp_path, server.url), cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        assert not run.logged("ROUTER_INTERRUPT_IGNORED")
        run.send(number)
        assert await run.ended() == 0
    assert "main" in run.logged("ROUTER_STOPPED")[0]["ledger"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
async def test_an_ignored_signal_stays_ignored(server: NatsServer, tmp_path: Path, number: signal.Signals) -> None:
    """Ignored as by `nohup`, or by `&` in a script."""
    ignoring = f"import os, signal, sys; signal.signal({number}, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    python = [sys.executable, "-c", ignoring, *COMMAND]
    async with running("run", configuration(tmp_path, server.url), cwd=tmp_path, python=python) as run:
        await run.has_logged("ROUTER_STARTED")
        run.send(number)
        with trio.move_on_after(0.5) as waited:
            await run.ended()
        assert waited.cancelled_caught
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_in_the_background_of_a_script_the_log_reports_that_sigint_ends_nothing(
    workers: int, server: NatsServer, tmp_path: Path
) -> None:
    config = configuration(tmp_path, server.url)
    config.write_text(config.read_text().replace('subject = "orders.*"', 'subject = "orders.*", queue = "q"'))
    ignoring = (
        f"import os, signal, sys; signal.signal({signal.SIGINT}, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    python = [sys.executable, "-c", ignoring, *COMMAND]
    async with running("run", "--workers", str(workers), config, cwd=tmp_path, python=python) as run:
        await run.has_logged("ROUTER_STARTED")
        (line,) = run.logged("ROUTER_INTERRUPT_IGNORED")
        assert line["level"] == "INFO"
        assert "SIGTERM" in line["message"]
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


TAKES = """
import signal
import threading

def ignores(message):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return message

def gives_up(message):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return message

def mine(number, frame):
    print("mine")

def has_its_own(message):
    signal.signal(signal.SIGTERM, mine)
    return message
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("handler", "taken_by"),
    [("ignores", "SIG_IGN"), ("gives_up", "SIG_DFL"), ("has_its_own", r".*taking\.py:\d+ in mine")],
)
async def test_a_signal_that_a_handler_module_takes_is_taken_back(
    server: NatsServer, tmp_path: Path, handler: str, taken_by: str, workers: int
) -> None:
    (tmp_path / "taking.py").write_text(TAKES)
    path = tmp_path / "router.toml"
    route = f"""
        [[routes]]
        name = "taking"
        handler = "taking:{handler}"
        from = {{ subject = "taken.*", queue = "all" }}
        to = [ {{ subject = "out" }} ]
    """
    path.write_text(CONFIG.replace("URL", server.url).partition("[[routes]]")[0] + route)
    async with running("run", path, "--workers", str(workers), cwd=tmp_path) as run, connect(server.url) as client:
        await run.has_logged("ROUTER_READY")
        await client.publish("taken.1", b"")
        line = await run.has_logged("ROUTER_SIGNAL_RESTORED")
        assert (line["level"], line["signal"]) == ("WARN", "SIGTERM")
        assert re.fullmatch(taken_by, line["taken_by"])
        if workers > 1:
            started = await run.has_logged("ROUTER_WORKER_STARTED", worker=line["worker"])
            os.kill(started["pid"], signal.SIGTERM)
            await run.has_logged("ROUTER_WORKER_LOST", pid=started["pid"])
        run.send(signal.SIGTERM)
        assert await run.ended() == 0
        assert run.logged("ROUTER_STOPPED")


@asynccontextmanager
async def impostor(pongs: int | None, *, then_close: bool = False) -> AsyncIterator[tuple[str, trio.Event]]:
    """A server that answers `pongs` PINGs (None: it does not even greet), and sends nothing more; or closes.

    Yields its URL, and an event that is set when it has fallen silent.
    """
    silent = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        if pongs is None:
            silent.set()
            await trio.sleep_forever()
        await stream.send_all(b'INFO {"max_payload": 1048576, "headers": true}\r\n')
        left = pongs
        async for data in stream:
            for _ in range(data.count(b"PING\r\n")):
                if not left:
                    silent.set()
                    if then_close:
                        for listener in listeners:
                            await listener.aclose()
                        await stream.aclose()
                        return
                    await trio.sleep_forever()
                left -= 1
                await stream.send_all(b"PONG\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(_serve, serve, listeners)
        yield f"nats://127.0.0.1:{port}", silent
        nursery.cancel_scope.cancel()


async def _serve(serve: Callable[[trio.SocketStream], object], listeners: list[trio.SocketListener]) -> None:
    try:
        await trio.serve_listeners(serve, listeners)  # type: ignore[arg-type]
    except* trio.ClosedResourceError:
        pass


@pytest.mark.parametrize("pongs", [None, 0, 1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_ends_a_start_that_a_server_delays(
    tmp_path: Path, number: signal.Signals, pongs: int | None
) -> None:
    async with (
        impostor(pongs) as (url, silent),
        running("run", configuration(tmp_path, url), cwd=tmp_path) as run,
    ):
        await silent.wait()
        run.send(number)
        began = trio.current_time()
        assert await run.ended() == 0
        assert trio.current_time() - began < 5
    assert run.logged("ROUTER_STOPPED")


@pytest.mark.parametrize("pongs", [1, 2, 3])
async def test_the_start_ends_when_the_server_dies_in_it(pongs: int) -> None:
    async with impostor(pongs, then_close=True) as (url, silent):
        router = Router(settings(url, routes=[core_route("in", "out"), core_route("in.2", "out", name="other")]))
        with trio.fail_after(5):
            async with router.open() as live:
                await silent.wait()
                assert {route.state for route in live.routes} == {"starting"}


async def test_the_start_ends_when_the_server_falls_silent_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_run, "SOURCES_WITHIN", 0.5)
    async with impostor(2) as (url, _):
        router = Router(settings(url, routes=[core_route("in", "out")], liveness_interval="1h"))
        began = trio.current_time()
        with trio.fail_after(10):
            async with router.open() as live:
                assert 0.5 <= trio.current_time() - began < 3
                assert live.routes[0].state == "starting"


def test_these_tests_hold_when_signals_are_ignored() -> None:
    """As in the background of a script: the programs that they start must receive these signals all the same."""
    test = f"{__file__}::{test_every_signal_drains_and_logs_the_ledger.__name__}"
    some = [f"{test}[{number:d}]" for number in (signal.SIGINT, signal.SIGQUIT)]
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *some]
    ended = subprocess.run(
        ["sh", "-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh", *pytest_],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=50,
    )
    assert ended.returncode == 0, ended.stdout
    assert "2 passed" in ended.stdout
