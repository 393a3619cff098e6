"""`/faults` over HTTP, and `run --enable-fault-injection` as a process against a real server."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.cli.command_line import INVALID_CONFIGURATION
from router_trio.cli.run.fault_pages import MAX_BODY, fault_pages
from router_trio.embedded import HOST, reserve_port
from router_trio.faults import Faults, Injection, close_connection, delay, error, timeout
from router_trio.testing import FakeBroker
from tests.support.command import command, running
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.watch import Watch

Address = tuple[str, int]


async def request(
    address: Address, method: str, path: str, body: object = None, content_type: str = "application/json"
) -> tuple[int, Any]:
    """Return status and JSON of an answer."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {len(content)}\r\n"
    if content_type:
        head += f"Content-Type: {content_type}\r\n"
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(head.encode() + b"\r\n" + content)
            answer = b"".join([part async for part in stream])
    first, _, rest = answer.partition(b"\r\n")
    text = rest.partition(b"\r\n\r\n")[2]
    return int(first.split(b" ")[1]), json.loads(text) if text.startswith(b"{") else text.decode()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
async def address(faults: Faults, watch: Watch) -> AsyncIterator[Address]:
    broker = FakeBroker()
    config = Settings(telemetry={"listen": f"{HOST}:0"}, connections={"main": {"servers": ["nats://fake:4222"]}})
    router = Router(
        config,
        observers=[watch],
        connect=faults.around_factory(lambda name, settings: broker.connect),
        pages=partial(fault_pages, faults),
    )
    async with router.open() as live:
        assert live.http_address is not None
        yield live.http_address


@pytest.mark.parametrize(
    ("sent", "injection"),
    [
        ({"fault": "error", "reason": "overloaded"}, Injection("publish", error("overloaded"))),
        ({"fault": "timeout", "after": "500ms", "times": 3}, Injection("publish", timeout(0.5), remaining=3)),
        ({"fault": "delay", "duration": "2s", "probability": 0.5}, Injection("publish", delay(2.0), probability=0.5)),
        ({"fault": "close_connection", "seed": 7, "times": None}, Injection("publish", close_connection(), seed=7)),
    ],
)
async def test_a_fault_is_injected_listed_and_cleared(
    address: Address, faults: Faults, watch: Watch, sent: dict[str, Any], injection: Injection
) -> None:
    assert await request(address, "GET", "/faults") == (200, {"faults": [], "struck": {}})
    code, answer = await request(address, "POST", "/faults", {"operation": "publish", **sent})
    assert code == 200
    assert faults.active() == (injection,)
    assert answer["faults"] == [
        {
            "operation": "publish",
            "fault": str(injection.fault),
            "probability": injection.probability,
            "seed": injection.seed,
            "times": injection.remaining,
        }
    ]
    assert (await request(address, "GET", "/faults"))[1] == answer
    assert await request(address, "DELETE", "/faults") == (200, {"faults": [], "struck": {}})
    assert faults.active() == ()
    (injected,) = watch.of("ROUTER_FAULT_INJECTED")
    assert (injected.operation, injected.fault) == ("publish", str(injection.fault))
    (cleared,) = watch.of("ROUTER_FAULTS_CLEARED")
    assert cleared.operation == "all"


async def test_one_fault_of_several_is_cleared(address: Address, faults: Faults) -> None:
    for operation in ("ack", "nak"):
        await request(address, "POST", "/faults", {"operation": operation, "fault": "close_connection"})
    code, answer = await request(address, "DELETE", "/faults/ack")
    assert (code, [one["operation"] for one in answer["faults"]]) == (200, ["nak"])
    assert (await request(address, "DELETE", "/faults/nothing"))[0] == 404


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"[" * 4000, 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
        ([], 400, "JSON object"),
        ({}, 400, "operation"),
        ({"operation": "fence", "fault": "close_connection"}, 400, "connect, publish"),
        ({"operation": ["publish"], "fault": "close_connection"}, 400, "operation"),
        ({"operation": "publish", "fault": "explode"}, 400, "fault must be one of"),
        ({"operation": "publish", "fault": {"a": 1}}, 400, "fault must be one of"),
        ({"operation": "publish", "fault": "error"}, 400, "'reason'"),
        ({"operation": "publish", "fault": "error", "reason": "__import__('os')"}, 400, "label"),
        ({"operation": "publish", "fault": "error", "reason": None}, 400, "reason"),
        ({"operation": "publish", "fault": "delay", "duration": 5}, 400, "duration"),
        ({"operation": "publish", "fault": "delay", "duration": "5"}, 400, "unit"),
        ({"operation": "publish", "fault": "timeout", "after": "2h"}, 400, "not a valid duration"),
        ({"operation": "publish", "fault": "close_connection", "probability": "often"}, 400, "probability"),
        ({"operation": "publish", "fault": "close_connection", "probability": 2}, 400, "probability"),
        (b'{"operation": "publish", "fault": "close_connection", "probability": NaN}', 400, "probability"),
        ({"operation": "publish", "fault": "close_connection", "times": 0}, 400, "times"),
        ({"operation": "publish", "fault": "close_connection", "times": 1.5}, 400, "times"),
        ({"operation": "publish", "fault": "close_connection", "seed": "x"}, 400, "seed"),
        ({"operation": "publish", "fault": "close_connection", "duration": "1s"}, 400, "unknown field: duration"),
        (b" " * (MAX_BODY + 1), 413, "at most"),
    ],
)
async def test_an_invalid_fault_is_refused(
    address: Address, faults: Faults, watch: Watch, body: object, code: int, message: str
) -> None:
    found, answer = await request(address, "POST", "/faults", body)
    assert (found, faults.active()) == (code, ())
    assert message in answer["error"]
    assert watch.of("ROUTER_FAULT_INJECTED") == []


async def test_only_json_is_accepted(address: Address, faults: Faults) -> None:
    body = {"operation": "publish", "fault": "close_connection"}
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert (await request(address, "POST", "/faults", body, content_type))[0] == 415
    assert faults.active() == ()


# --- the command ---


def configuration(path: Path, server: str, port: int) -> Path:
    path.write_text(
        f'[telemetry]\nlisten = "{HOST}:{port}"\n[connections.main]\nservers = ["{server}"]\n'
        'reconnect_delay = "50ms"\nmax_reconnect_delay = "200ms"\n'
        '[[routes]]\nname = "orders"\nfrom = { subject = "orders.*" }\nto = [ { subject = "eu.{{wildcard(1)}}" } ]\n'
    )
    return path


async def test_without_the_flag_the_page_does_not_exist(core_server: NatsServer, tmp_path: Path) -> None:
    with reserve_port() as port:
        config = configuration(tmp_path / "router.toml", core_server.url, port)
        async with running("run", config, cwd=tmp_path) as run:
            await run.has_logged("ROUTER_STARTED")
            for method in ("GET", "POST", "DELETE"):
                assert (await request((HOST, port), method, "/faults", {}))[0] == 404
            assert run.logged("ROUTER_FAULT_INJECTION_ENABLED") == []


async def test_a_fault_drill_from_outside(core_server: NatsServer, tmp_path: Path) -> None:
    with reserve_port() as port:
        config = configuration(tmp_path / "router.toml", core_server.url, port)
        address = (HOST, port)
        async with running("run", config, "--enable-fault-injection", cwd=tmp_path) as run:
            enabled = await run.has_logged("ROUTER_FAULT_INJECTION_ENABLED")
            assert enabled["level"] == "WARN"
            assert "FAULT INJECTION IS ENABLED" in enabled["message"]
            await run.has_logged("ROUTER_STARTED")
            async with connect(core_server.url) as client:
                arrived = await client.subscribe("eu.*")
                await request(
                    address, "POST", "/faults", {"operation": "connect", "fault": "error", "reason": "rehearsal"}
                )
                await request(
                    address, "POST", "/faults", {"operation": "publish", "fault": "close_connection", "times": 1}
                )
                await client.publish("orders.7", b"x")
                await run.has_logged("NATS_CONNECTION_LOST", reason="closed")
                await run.has_logged("NATS_CONNECTION_FAILED", reason="rehearsal", attempt=3)
                code, answer = await request(address, "DELETE", "/faults")
                assert (code, answer["struck"]["publish"]) == (200, 1)
                await run.has_logged("NATS_RETRY_COMPLETE", success_count=1, failed_count=0)
                assert (await arrived.next()).subject == "eu.7"
            run.send(signal.SIGTERM)
            assert await run.ended() == 0


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.7:9001", "router.example.com:9001"])
def test_a_router_reachable_from_other_machines_accepts_no_faults(tmp_path: Path, listen: str) -> None:
    config = tmp_path / "router.toml"
    config.write_text(f"""
[telemetry]
listen = "{listen}"
[connections.main]
servers = ["nats://127.0.0.1:4"]
""")
    done = command("run", config, "--enable-fault-injection", cwd=tmp_path)
    assert done.returncode == INVALID_CONFIGURATION
    assert done.stderr.startswith(f"{config}: telemetry.listen: other machines reach {listen!r}")
    assert "--enable-fault-injection" in done.stderr
