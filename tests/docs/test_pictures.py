"""The pictures of terminals show what is printed: the same lines, with other numbers."""

from __future__ import annotations

import html
import re
import runpy
from pathlib import Path

import pytest
from rich.text import Text

from tests.docs.pages import DOCS
from tests.support.command import command

pytestmark = pytest.mark.slow

TERMINAL = runpy.run_path(str(DOCS / "terminal.py"))
PICTURES = TERMINAL["PICTURES"]
_PIECE = re.compile(r'<text class="\w+-r\d+".*?clip-path="url\(#\w+-line-(\d+)\)">(.*?)</text>', re.DOTALL)
_TIME = re.compile(r"\d\d:\d\d:\d\d")


def lines_of(svg: str) -> list[str]:
    """Return the non-empty lines of a picture of a terminal, without spaces: those are positions there."""
    lines: dict[int, str] = {}
    for number, piece in _PIECE.findall(svg):
        lines[int(number)] = lines.get(int(number), "") + html.unescape(piece).replace("\xa0", " ")
    packed = ["".join(lines[number].split()) for number in sorted(lines)]
    return [line for line in packed if line]


def kinds(lines: list[str]) -> set[str]:
    """Return the words of lines, without spaces and what differs between runs: numbers, states, how a connection was
    lost.
    """
    found = set()
    for line in lines:
        text = re.sub(r"\d+of\d+arrived.*|\d+arrivedof\d+.*", "ARRIVED", "".join(line.split()))
        text = re.sub(r"received=.*", "received", text)
        text = re.sub(r"\](connected|reconnecting|disconnected):", "]STATE:", text)
        text = re.sub(r"islost\(\w+\)", "islost(REASON)", text)
        found.add(re.sub(r"[\d.]+", "N", text))
    return found - {""}


def test_the_picture_of_the_demo_shows_what_it_prints(tmp_path: Path) -> None:
    shown = lines_of(PICTURES["demo"].path.read_text(encoding="utf-8"))
    assert shown[0] == f"$router-trio{''.join(TERMINAL['DEMO'])}"
    done = command("demo", "--duration", "3s", cwd=tmp_path, within=50.0)
    assert done.returncode == 0, done.stdout
    assert kinds(shown[1:]) == kinds(done.stdout.splitlines()), "run `python docs/terminal.py`, and commit the picture"


def shown_in(name: str) -> str:
    """Return the text of a picture, without spaces and line ends: long lines are wrapped in it."""
    return "".join(lines_of(PICTURES[name].path.read_text(encoding="utf-8")))


def printed_for(name: str) -> str:
    """Return the output printed now, in the form of `shown_in`."""
    return "".join(Text.from_ansi(PICTURES[name].record()).plain.split())


def test_the_picture_of_check_shows_what_it_prints() -> None:
    printed = printed_for("check")
    assert len(re.findall(r"router\.toml:\w", printed)) == 5
    assert shown_in("check") == printed, "run `python docs/terminal.py check`, and commit the picture"


def test_the_picture_of_a_log_shows_the_lines_of_an_outage() -> None:
    # A number that the sentence contains is not repeated as a field: 1.2 is not, 1.234 is. So these fields vary.
    varying = re.compile(r":(closed|network);|reason=\w+|\[detail=.*?NATS|[a-z_]+=[\d.]+")

    def lines(text: str) -> set[str]:
        found = {re.sub(r"[\d.]+", "N", varying.sub("", line)) for line in _TIME.split(text)}
        # Readiness is checked once a second, so it may not see a short outage.
        return {line for line in found if "ROUTER_NOT_READY" not in line and "ROUTER_READY" not in line}

    printed = lines(printed_for("log"))
    assert {code for code in ("NATS_CONNECTION_LOST", "ROUTER_STOPPED") if any(code in one for one in printed)}
    assert lines(shown_in("log")) == printed, "run `python docs/terminal.py log`, and commit the picture"


def test_the_picture_of_top_shows_its_headings_and_the_routes_that_are_not_well() -> None:
    def texts(lines: list[str]) -> list[str]:
        packed = (re.sub(r"[\d.,k]+", "N", "".join(line.split())) for line in lines)
        return [line for line in packed if not re.match(r"(main|archive|invoices|\S+-orders)(connected|running)", line)]

    shown, printed = texts(lines_of(PICTURES["top"].path.read_text(encoding="utf-8"))), PICTURES["top"].record()
    assert len(shown) > 6
    now = [line for line in texts(Text.from_ansi(printed).plain.splitlines()) if line]
    assert shown == now, "run `python docs/terminal.py top`, and commit the picture"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_loads_nothing(name: str) -> None:
    text = PICTURES[name].path.read_text(encoding="utf-8")
    assert not re.search(r"""(?:url\(|href=|src=)["']?(?:https?:)?//""", text)
    assert "@font-face" not in text


def test_a_drawn_terminal_has_each_line() -> None:
    svg = TERMINAL["drawn"](
        PICTURES["demo"], "$ router-trio demo\n[  0.1s] connected: 1 < 2 & 3\n\nNothing was lost.\n"
    )
    assert lines_of(svg) == ["$router-triodemo", "[0.1s]connected:1<2&3", "Nothingwaslost."]
