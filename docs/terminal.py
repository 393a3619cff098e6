"""The picture of the demo on the first page: `python docs/terminal.py` runs the demo, and draws what it prints.

It is a real run, with its own numbers. The picture loads no font and nothing else from other hosts. A test compares its
lines, but for the numbers, with those that the demo prints today.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "img" / "demo.svg"
COMMAND = ("demo", "--duration", "10s")
COLUMNS = 104
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

STYLES = {
    r"^\$ .*": "bold",
    r"^\[.*?\]": "dim",
    r"the server is killed.*|the connection is lost.*|reconnecting|disconnected": "red",
    r"connected again.*|these are settled.*|each once and in order": "green",
    r"^Nothing was lost\.": "bold green",
}


def drawn(output: str) -> str:
    """Return the output of the demo as a picture of a terminal."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in output.splitlines():
        text = Text(line)
        for pattern, style in STYLES.items():
            text.highlight_regex(pattern, style)
        console.print(text, highlight=False)
    code_format = re.sub(r"@font-face {{.*?}}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="router-trio demo", code_format=code_format, unique_id="demo")
    return svg.replace("Fira Code, monospace", FONT)


def draw() -> None:
    """Run the demo, and write its picture. Raises `CalledProcessError` if the demo lost a message."""
    run = [sys.executable, "-m", "router_trio", *COMMAND]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    PICTURE.write_text(drawn(f"$ router-trio {' '.join(COMMAND)}\n{done.stdout}"), encoding="utf-8")
    print(PICTURE)


if __name__ == "__main__":
    draw()
