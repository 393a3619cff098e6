"""Pictures of terminals in the documentation: `python docs/terminal.py [NAME...]` runs what they show, and draws it.

Each is a real run, with its own numbers. The pictures load no font and nothing else from other hosts. A test compares
the lines of each, but for the numbers, with those that are printed today.
"""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from router_trio.embedded import EmbeddedServer, open_embedded_server

IMAGES = Path(__file__).parent / "img"
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
DEMO = ("demo", "--duration", "10s")
TOLD_WITHIN = 20.0

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


@dataclass(frozen=True)
class Picture:
    """One of them. `record` runs what it shows and returns what was printed, with the command that was typed.

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
                    return await _told_in_an_outage(ours, server, process)
                finally:
                    process.kill()
                    await process.wait()
    finally:
        os.close(ours)
        os.close(terminal)


async def _told_in_an_outage(terminal: int, server: EmbeddedServer, process: trio.Process) -> str:
    told = ""

    async def until(code: str) -> None:
        nonlocal told
        while code not in told:
            await trio.lowlevel.wait_readable(terminal)
            told += os.read(terminal, 65536).decode()

    with trio.fail_after(TOLD_WITHIN):
        await until("ROUTER_STARTED")
        await server.kill()
        await until("NATS_CONNECTION_FAILED")
        await server.restart()
        await until("NATS_CONNECTION_RESTORED")
        process.send_signal(signal.SIGINT)
        await until("ROUTER_STOPPED")
    # A user and a password are in no line; the port is another one each time.
    return told.replace(f":{server.address.rpartition(':')[2]}", ":4222").replace("\r", "")


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
    )
}


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        picture = PICTURES[name]
        picture.path.write_text(drawn(picture, picture.record()), encoding="utf-8")
        print(picture.path)
