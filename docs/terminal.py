"""Pictures of terminals in the documentation: `python docs/terminal.py [NAME...]` runs what they show, and draws it.

Each is a real run, with its own numbers. The pictures load no font and nothing else from other hosts. A test compares
the lines of each, but for the numbers, with those that are printed today.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import trio
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from router_trio.embedded import EmbeddedServer, open_embedded_server

IMAGES = Path(__file__).parent / "img"
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
DEMO = ("demo", "--duration", "10s")
LOGGED_WITHIN = 20.0

MISTAKES = """\
[telemetry]
log_level = "verbose"

[connections.main]
servers = ["nats://127.0.0.1:4222"]
reconect_delay = "1s"

[[routes]]
name = "eu-orders"
when = 'headers["region"] = "eu"'
from = { subject = "orders.*.created" }
to = [ { connection = "mian", subject = "eu.{{wildcard(2)}}" } ]
"""
ORDERS = """\
[telemetry]
listen = ""

[connections.main]
servers = ["SERVER"]
reconnect_delay = "500ms"

[[routes]]
name = "eu-orders"
from = { subject = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
"""
SHOP = """\
[router]
name = "orders-router"

[telemetry]
listen = "127.0.0.1:0"

[connections.main]
servers = ["SERVER"]

[[streams]]
connection = "main"
name = "ORDERS"
subjects = ["orders.*", "invoices.*"]

[[streams]]
connection = "main"
name = "COPIES"
subjects = ["eu.*", "dead.*"]

[[routes]]
name = "eu-orders"
from = { stream = "ORDERS", durable = "eu-orders", filter = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]

[[routes]]
name = "live-orders"
from = { subject = "orders.*" }
to = [ { subject = "live.{{wildcard(1)}}" } ]

[[routes]]
name = "invoices"
when = "body.total > 100"
from = { stream = "ORDERS", durable = "invoices", filter = "invoices.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
retry = { attempts = 1 }
dead_letter = { subject = "dead.{{wildcard(1)}}" }

[[routes]]
name = "archive"
from = { stream = "ORDERS", durable = "archive", filter = "orders.*" }
to = [ { subject = "archive.{{wildcard(1)}}" } ]
"""
TOP_COLUMNS, TOP_LINES = 80, 20


@dataclass(frozen=True)
class Picture:
    """A picture. `record` runs what it shows and returns what was printed, with the command that was typed.

    `styles` are of lines without colours of their own.
    """

    name: str
    columns: int
    record: Callable[[], str]
    styles: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where it is."""
        return IMAGES / f"{self.name}.svg"


def drawn(picture: Picture, output: str) -> str:
    """Return output as a picture of a terminal."""
    console = Console(
        record=True, width=picture.columns, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in output.splitlines():
        text = Text.from_ansi(line)
        for pattern, style in {r"^\$ .*": "bold", **picture.styles}.items():
            text.highlight_regex(pattern, style)
        console.print(text, highlight=False)
    code_format = re.sub(r"@font-face {{.*?}}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="router-trio", code_format=code_format, unique_id=picture.name)
    return svg.replace("Fira Code, monospace", FONT)


def run_demo() -> str:
    """Raises `CalledProcessError` if the demo lost a message."""
    run = [sys.executable, "-m", "router_trio", *DEMO]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    return f"$ router-trio {' '.join(DEMO)}\n{done.stdout}"


def run_check() -> str:
    """`check` of a file with mistakes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "router.toml").write_text(MISTAKES)
        run = [sys.executable, "-m", "router_trio", "check", "router.toml"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    return f"$ router-trio check router.toml\n{done.stdout}"


def run_log() -> str:
    """A router at a terminal, whose server is killed and started again."""
    return f"$ router-trio run router.toml\n{trio.run(_log_of_an_outage)}"


async def _log_of_an_outage() -> str:
    ours, terminal = pty.openpty()
    try:
        with tempfile.TemporaryDirectory() as folder:
            async with open_embedded_server() as server:
                config = trio.Path(folder, "router.toml")
                await config.write_text(ORDERS.replace("SERVER", server.url))
                run = [sys.executable, "-m", "router_trio", "run", str(config)]
                environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
                process = await trio.lowlevel.open_process(run, stderr=terminal, env=environment | {"TERM": "xterm"})
                try:
                    return await _logged_in_an_outage(ours, server, process)
                finally:
                    process.kill()
                    await process.wait()
    finally:
        os.close(ours)
        os.close(terminal)


async def _logged_in_an_outage(terminal: int, server: EmbeddedServer, process: trio.Process) -> str:
    logged = ""

    async def until(code: str) -> None:
        nonlocal logged
        while code not in logged:
            await trio.lowlevel.wait_readable(terminal)
            logged += os.read(terminal, 65536).decode()

    with trio.fail_after(LOGGED_WITHIN):
        await until("ROUTER_STARTED")
        await server.kill()
        await until("NATS_CONNECTION_FAILED")
        await server.restart()
        await until("NATS_CONNECTION_RESTORED")
        process.send_signal(signal.SIGINT)
        await until("ROUTER_STOPPED")
    # A user and a password are in no line; the port is another one each time.
    return logged.replace(f":{server.address.rpartition(':')[2]}", ":4222").replace("\r", "")


def run_top() -> str:
    """`top` beside a router with traffic, with two routes that are not well."""
    return f"$ router-trio top\n{trio.run(_top_of_a_shop)}"


async def _top_of_a_shop() -> str:
    with tempfile.TemporaryDirectory() as folder:
        async with open_embedded_server() as server, trio.open_nursery() as nursery:
            config = trio.Path(folder, "router.toml")
            await config.write_text(SHOP.replace("SERVER", server.url))
            run = [sys.executable, "-m", "router_trio", "run", str(config)]
            environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
            process = await trio.lowlevel.open_process(run, stderr=subprocess.PIPE, env=environment)
            try:
                url = await _url_of(process)
                nursery.start_soon(_send_orders, server.url)
                frame = await _last_frame([sys.executable, "-m", "router_trio", "top", url], environment)
            finally:
                process.kill()
                await process.wait()
            nursery.cancel_scope.cancel()
            port = server.address.rpartition(":")[2]
    return frame.replace(f":{port}", ":4222")  # the port is another one each time


async def _url_of(process: trio.Process) -> str:
    """Return the address of a router's pages, once it has started."""
    logged = b""
    assert process.stderr is not None
    with trio.fail_after(LOGGED_WITHIN):
        while b"ROUTER_STARTED" not in logged:
            logged += await process.stderr.receive_some()
    found = re.search(rb"http://127\.0\.0\.1:\d+", logged)
    assert found is not None
    return found[0].decode()


async def _send_orders(url: str) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
        login = json.dumps({"user": parts.username, "pass": parts.password, "verbose": False})
        await stream.send_all(f"CONNECT {login}\r\n".encode())
        while True:
            for number in range(20):
                body = b'{"total": 150}' if number else b"{}"
                frame = b"PUB orders.%d %d\r\n%b\r\nPUB invoices.%d %d\r\n%b\r\n"
                await stream.send_all(frame % (number, len(body), body, number, len(body), body))
            await trio.sleep(0.1)


async def _last_frame(command: list[str], environment: dict[str, str]) -> str:
    """Return what a command has drawn in a terminal after some seconds."""
    ours, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", TOP_LINES, TOP_COLUMNS, 0, 0))
        without_size = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        process = await trio.lowlevel.open_process(command, stdout=terminal, env=without_size | {"TERM": "xterm"})
        drawn = b""
        try:
            with trio.fail_after(LOGGED_WITHIN):
                while drawn.count(FRAME) < 3 or b"dead-lettered" not in drawn:
                    await trio.lowlevel.wait_readable(ours)
                    drawn += os.read(ours, 65536)
        finally:
            process.kill()
            await process.wait()
        return re.sub(r"\x1b\[[KJ]|\r", "", drawn.split(FRAME)[-2].decode())
    finally:
        os.close(ours)
        os.close(terminal)


FRAME = b"\x1b[H"

DEMO_STYLES = {
    r"^\[.*?\]": "dim",
    r"the server is killed.*|the connection is lost.*|reconnecting|disconnected": "red",
    r"reconnected after.*|these messages are settled.*|each once and in order": "green",
    r"^Nothing was lost\.": "bold green",
}
PICTURES = {
    picture.name: picture
    for picture in (
        Picture("demo", 104, run_demo, DEMO_STYLES),
        Picture("check", 118, run_check, {r"^router\.toml: [^ ]+:": "cyan", r"\(line .*\)$": "dim"}),
        Picture("log", 118, run_log),
        Picture("top", TOP_COLUMNS, run_top),
    )
}


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        picture = PICTURES[name]
        picture.path.write_text(drawn(picture, picture.record()), encoding="utf-8")
        print(picture.path)
