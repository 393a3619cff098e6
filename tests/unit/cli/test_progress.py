"""The progress bar of commands that read many messages."""

from __future__ import annotations

import sys
from io import StringIO

import pytest

from router_trio.cli.progress import progress_bar


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_numbers_as_the_summary_does(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar("comparing") as progress:
        progress(1_234, 10_000_000)
    assert "comparing" in terminal.getvalue()
    assert "     1,234/10,000,000" in terminal.getvalue()


def test_nothing_is_written_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    output = StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    with progress_bar("comparing") as progress:
        progress(1, 2)
    assert output.getvalue() == ""
