"""The demo's two ways to show itself."""

from __future__ import annotations

import io

from rich.console import Console
from rich.live import Live as Screen

from router_trio.demo.display import Moment, PlainDisplay, ScreenDisplay, open_display

MOMENT = Moment(elapsed=5.0, duration=20.0, state="reconnecting", published=1234, pending=56, in_flight=7, settled=890)


def test_a_file_that_is_no_terminal_gets_plain_lines() -> None:
    file = io.StringIO()
    with open_display(file) as display:
        assert isinstance(display, PlainDisplay)
        display.log("all is [well]")
        display.log("the server is killed", 5.25)
        display.show(MOMENT)
    assert file.getvalue().splitlines() == [
        "all is [well]",
        "[  5.2s] the server is killed",
        "[  5.0s] reconnecting: 1234 published, 56 pending, 7 in flight, 890 settled",
    ]


def test_a_terminal_gets_a_screen_and_keeps_the_log() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    with Screen(console=console, auto_refresh=False, transient=True) as screen:
        display = ScreenDisplay(screen)
        display.show(MOMENT)
        display.log("all is [well]", 5.0)
    text = file.getvalue()
    assert "[  5.0s] all is [well]" in text
    for shown in ("reconnecting", "1234", "56", "890"):
        assert shown in text
    assert "\x1b[" in text
