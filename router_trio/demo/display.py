"""Show the progress of the demo: updated in place in a terminal, as plain lines elsewhere."""

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
    """The counts at one moment of the demo. Times are in seconds."""

    elapsed: float
    duration: float
    state: str
    published: int
    pending: int
    in_flight: int
    settled: int


class Display(Protocol):
    """Shows the progress of the demo. Both methods are synchronous and write immediately."""

    interval: float
    """Seconds between two calls of `show`."""

    def log(self, text: str, elapsed: float | None = None) -> None:
        """Write a line that stays on the screen, with the elapsed seconds if given."""

    def show(self, moment: Moment) -> None:
        """Show the counts of a moment."""


class PlainDisplay:
    """Writes one line for each call."""

    interval: float = 2.0

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def log(self, text: str, elapsed: float | None = None) -> None:
        """Write a line, with the elapsed seconds if given."""
        print(text if elapsed is None else f"[{elapsed:5.1f}s] {text}", file=self._file, flush=True)

    def show(self, moment: Moment) -> None:
        """Write the counts as one line."""
        self.log(
            f"{moment.state}: {moment.published} published, {moment.pending} pending, {moment.in_flight} in flight, "
            f"{moment.settled} settled",
            moment.elapsed,
        )


class ScreenDisplay:
    """Scrolls the lines, and updates the counts below them in place."""

    interval: float = 0.2

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def log(self, text: str, elapsed: float | None = None) -> None:
        """Write a line above the counts."""
        line = Text(text if elapsed is None else f"[{elapsed:5.1f}s] {text}")
        self._screen.console.print(line, highlight=False)

    def show(self, moment: Moment) -> None:
        """Redraw the counts."""
        done = round(_BAR * min(1.0, moment.elapsed / moment.duration))
        table = Table.grid(padding=(0, 2))
        table.add_row("connection", Text(moment.state, style=_STYLES.get(moment.state, "")))
        for name in ("published", "pending", "in_flight", "settled"):
            table.add_row(name.replace("_", " "), Text(str(getattr(moment, name)), justify="right"))
        bar = Text("━" * done, style="green") + Text("━" * (_BAR - done), style="dim")
        self._screen.update(Group("", bar, table), refresh=True)


@contextmanager
def open_display(file: TextIO) -> Iterator[Display]:
    """Open a display on `file`, updated in place if that is a terminal, and restore the terminal on exit."""
    console = Console(file=file)
    if not console.is_terminal:
        yield PlainDisplay(file)
        return
    # Only `show` refreshes the screen: the automatic refresh of rich would run in a thread.
    with Screen(console=console, auto_refresh=False, transient=True) as screen:
        yield ScreenDisplay(screen)
