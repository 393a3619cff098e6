"""Show the demo: live in a terminal, as plain lines everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

_BAR = 40
_STYLES = {"connected": "green", "reconnecting": "yellow", "disconnected": "red"}


@dataclass(frozen=True, slots=True)
class Moment:
    """The numbers of one moment. Times in seconds."""

    elapsed: float
    duration: float
    state: str
    published: int
    pending: int
    in_flight: int
    settled: int


class Display(Protocol):
    """Both methods are synchronous and print at once."""

    interval: float
    """Seconds between two moments that are worth showing."""

    def say(self, text: str, elapsed: float | None = None) -> None:
        """Tell what happened, and stay on the screen."""

    def show(self, moment: Moment) -> None:
        """Show how things are."""


class PlainDisplay:
    """Prints a line for each thing said or shown."""

    interval: float = 2.0

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def say(self, text: str, elapsed: float | None = None) -> None:
        """Print a line, with the time if there is one."""
        print(text if elapsed is None else f"[{elapsed:5.1f}s] {text}", file=self._file, flush=True)

    def show(self, moment: Moment) -> None:
        """Print the numbers in a line."""
        self.say(
            f"{moment.state}: {moment.published} published, {moment.pending} pending, {moment.in_flight} in flight, "
            f"{moment.settled} settled",
            moment.elapsed,
        )


class ScreenDisplay:
    """Scrolls the lines, and keeps the numbers below them up to date."""

    interval: float = 0.2

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def say(self, text: str, elapsed: float | None = None) -> None:
        """Print a line above the numbers."""
        line = Text(text if elapsed is None else f"[{elapsed:5.1f}s] {text}")
        self._screen.console.print(line, highlight=False)

    def show(self, moment: Moment) -> None:
        """Redraw the numbers."""
        done = round(_BAR * min(1.0, moment.elapsed / moment.duration))
        table = Table.grid(padding=(0, 2))
        table.add_row("connection", Text(moment.state, style=_STYLES.get(moment.state, "")))
        for name in ("published", "pending", "in_flight", "settled"):
            table.add_row(name.replace("_", " "), Text(str(getattr(moment, name)), justify="right"))
        bar = Text("━" * done, style="green") + Text("━" * (_BAR - done), style="dim")
        self._screen.update(Group("", bar, table), refresh=True)


@contextmanager
def open_display(file: TextIO) -> Iterator[Display]:
    """Open a display on `file`: live if that is a terminal. The terminal is as before afterwards."""
    console = Console(file=file)
    if not console.is_terminal:
        yield PlainDisplay(file)
        return
    # Refreshed by `show` alone: rich's own refresh is a thread.
    with Screen(console=console, auto_refresh=False, transient=True) as screen:
        yield ScreenDisplay(screen)
