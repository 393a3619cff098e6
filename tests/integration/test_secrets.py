"""Secrets in the variables and the configuration of a command with any error: no output repeats them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from router_trio.embedded import reserve_port
from tests.support.command import command, in_process, running
from tests.support.impostors import Caller, impostor
from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

SECRET = "Qs3cretZ9"
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"

VARIABLES = [
    {"OTEL_EXPORTER_OTLP_HEADERS": SECRET},
    {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization: Bearer {SECRET}"},
    {"OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRET};x,{SECRET}"},
    {"OTEL_EXPORTER_OTLP_HEADERS": f"api key={SECRET}"},
    {"OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRET}%0d%0ax"},
    {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"={SECRET}"},
    {"OTEL_RESOURCE_ATTRIBUTES": f"team={SECRET}=x,{SECRET}"},
    {"OTEL_EXPORTER_OTLP_TIMEOUT": SECRET},
    {"OTEL_EXPORTER_OTLP_COMPRESSION": SECRET},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://user:{SECRET}@127.0.0.1:9"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:9/?token={SECRET}"},
]


@pytest.fixture
async def collector() -> AsyncIterator[OtlpReceiver]:
    """Run a collector that accepts every span."""
    async with otlp_receiver() as receiver:
        yield receiver


PROGRAM = """
import json, os, sys, trio
from router_trio import Router, Settings

settings = Settings(
    telemetry={"listen": "", "otlp_endpoint": sys.argv[2], "trace_sample_ratio": 1.0},
    connections={"main": {"servers": [sys.argv[1]]}},
    routes=[{"name": "r", "from": {"subject": "in"}, "to": [{"subject": "out"}]}],
)

async def main():
    async with Router(settings).open() as live:
        await (await live.publish("in", b"x")).settled()
        await trio.sleep(0.2)

for variables in json.loads(sys.argv[3]):
    os.environ.update(variables)
    print("with", *variables, file=sys.stderr)
    trio.run(main)
    for name in variables:
        del os.environ[name]
"""
"""Opens a router with each of the sets of variables in turn."""


@pytest.mark.parametrize("variables", VARIABLES, ids=lambda variables: "".join(variables))
async def test_no_variable_of_opentelemetry_is_quoted(
    core_server: NatsServer, collector: OtlpReceiver, tmp_path: Path, variables: dict[str, str]
) -> None:
    (tmp_path / "router.toml").write_text(
        f'[telemetry]\nlisten = ""\notlp_endpoint = "{collector.endpoint}"\ntrace_sample_ratio = 1.0\n'
        f'[connections.main]\nservers = ["nats://user:{SECRET}@127.0.0.1:{core_server.port}"]\n'
        '[[routes]]\nname = "r"\nfrom = { subject = "in" }\nto = [ { subject = "out" } ]\n'
    )
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in variables:
        variables = {**variables, "ROUTER_TRIO_TELEMETRY__OTLP_ENDPOINT": ""}
    async with running("run", "router.toml", cwd=tmp_path, env=variables) as run:
        await run.has_logged("ROUTER_STARTED")
        async with connect(core_server.url) as client:
            arrived = await client.subscribe("out")
            await client.ping()
            await client.publish("in", b"x")  # a span of it is exported at the end
            await arrived.next()
        run.send(signal.SIGTERM)
        assert await run.ended() == 0
    assert SECRET not in run.output + run.errors


async def test_no_variable_is_quoted_by_a_program_without_logging(
    core_server: NatsServer, collector: OtlpReceiver, tmp_path: Path
) -> None:
    arguments = ["-c", PROGRAM, core_server.url, collector.endpoint, json.dumps(VARIABLES[:-2])]
    async with running(*arguments, cwd=tmp_path, python=[sys.executable, "-u"]) as program:
        assert await program.ended() == 0
    assert program.errors.count("with OTEL_") == len(VARIABLES[:-2])
    assert SECRET not in program.output + program.errors


WRONG = [
    f'servers = ["nats://user:{SECRET}"]',
    f'servers = ["nats://host?token={SECRET}"]',
    f'servers = ["nats://user:{SECRET}@host:port"]',
    f'passwort = "{SECRET}"',
    f'nkey_seed_file = "{SEED}"',
    f'tls_key_file = """-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"""',
]
CONFIGURED = {
    "check": ["check", "router.toml"],
    "run": ["run", "router.toml"],
    "explain": ["explain", "router.toml", "x"],
}


@pytest.mark.parametrize("line", WRONG)
@pytest.mark.parametrize("name", CONFIGURED)
def test_no_command_repeats_a_secret_of_an_invalid_configuration(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "router.toml").write_text(f"[connections.main]\n{line}\n")
    refused(in_process(*CONFIGURED[name], cwd=tmp_path))


@pytest.mark.parametrize("name", CONFIGURED)
def test_no_process_repeats_a_secret_of_an_invalid_configuration(tmp_path: Path, name: str) -> None:
    (tmp_path / "router.toml").write_text(
        "".join(f"[connections.main{number}]\n{line}\n" for number, line in enumerate(WRONG))
    )
    refused(command(*CONFIGURED[name], cwd=tmp_path))


def refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 78
    assert "connections.main" in done.stdout + done.stderr
    for secret in (SECRET, SEED):
        assert secret not in done.stdout + done.stderr


ARGUMENTS = [
    ["run", f"nats://user:{SECRET}@host"],
    ["check", f"nats://user:{SECRET}@host"],
    ["run", f"--token={SECRET}"],
    ["run", "router.toml", f"nats://user:{SECRET}@host"],
    [f"nats://user:{SECRET}@host"],
    ["demo", "--duration", f"nats://user:{SECRET}@host"],
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_no_command_repeats_a_secret_of_its_own_arguments(tmp_path: Path, arguments: list[str]) -> None:
    not_repeated(in_process(*arguments, cwd=tmp_path))


def test_no_process_repeats_a_secret_of_its_arguments(tmp_path: Path) -> None:
    not_repeated(command(*ARGUMENTS[0], cwd=tmp_path))


def not_repeated(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode in (2, 78)
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("through", ["nothing", "a gateway", "a proxy"])
async def test_no_page_shows_the_credentials_in_a_server_url(tmp_path: Path, through: str) -> None:
    async def refuse(caller: Caller) -> None:
        await caller.hear(b"\r\n\r\n")
        await caller.say(b"HTTP/1.1 502 connection refused\r\n\r\n")
        await caller.close()

    async with impostor(refuse) as between:
        await _no_page_shows_a_secret(tmp_path, through, between.address)


async def _no_page_shows_a_secret(tmp_path: Path, through: str, between: str) -> None:
    server = (
        f"nats://user:{SECRET}@127.0.0.1:9" if through == "nothing" else f"ws://user:{SECRET}@{between}/?k={SECRET}"
    )
    with reserve_port() as port:
        lines = [
            *("[telemetry]", f'listen = "127.0.0.1:{port}"', "[connections.main]", f'servers = ["{server}"]'),
            'reconnect_delay = "50ms"',
        ]
        if through != "nothing":
            lines.append(f'websocket_headers = {{ X-Route = "{SECRET}" }}')
        if through == "a proxy":
            lines.append(f'proxy = "http://user:{SECRET}@{between}"')
        (tmp_path / "router.toml").write_text("\n".join(lines))
        async with running("run", "router.toml", cwd=tmp_path) as run:
            await run.has_logged("NATS_CONNECTION_FAILED")
            await run.has_logged("ROUTER_STARTED")
            shown = run.errors
            for page in ("/status", "/readyz", "/events"):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                async with stream:
                    await stream.send_all(f"GET {page} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                    text = b""
                    while b"NATS_CONNECTION_FAILED" not in text and b"connection refused" not in text:
                        text += await stream.receive_some()
                shown += text.decode()
            run.send(signal.SIGTERM)
            assert await run.ended() == 0
    assert SECRET not in shown
