"""`router-trio top`: a live table of the routes and connections of a router."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from router_trio.cli.colours import Colours
from router_trio.cli.command_line import DONE, Parser
from router_trio.cli.interruptible import until_interrupted
from router_trio.cli.output import draw, plain, screen, show_json, show_painted
from router_trio.cli.router_pages import DEFAULT_URL, RouterPages
from router_trio.cli.top.rates import Overview, overview
from router_trio.cli.top.table import lines
from router_trio.errors import RouterError
from router_trio.terminals import is_terminal, printable, shows_colours

INTERVAL = 2.0
"""Seconds between two readings."""

FIRST_INTERVAL = 1.0
"""Seconds between the first two readings, from which the first rates are computed."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `top`."""
    parser.add_argument(
        "url", nargs="?", default=DEFAULT_URL, metavar="URL", help=f"HTTP side of the router; {DEFAULT_URL} if omitted"
    )
    parser.add_argument("--once", action="store_true", help="print the table once, after one second, and end")
    parser.add_argument("--json", action="store_true", help="print each reading as one line of JSON")


def top(url: str, *, once: bool, json: bool) -> int:
    """Show a live table of the routes and connections of a router.

    Shows rates, messages in hand, lag, ledger and last failure of each
    route, the sum over all workers; first what is not well, and why. In a
    wider terminal there are more columns. Ends with Ctrl-C.

    Without a terminal, in a pipe or with --json, each reading is printed
    below the one before. NO_COLOR switches colours off.

    For example:

        router-trio top
        router-trio top http://10.0.0.7:9001 --once
        router-trio top --json --once | jq '.routes'
    """
    pages = RouterPages(url)
    in_place = is_terminal(sys.stdout) and not once and not json and os.environ.get("TERM") != "dumb"
    colours = Colours(enabled=shows_colours(sys.stdout) and not json)
    with screen() if in_place else nullcontext(), until_interrupted():
        if in_place:
            _follow(pages, colours)
        for number, found in enumerate(_overviews(pages, (lambda found: found) if json else plain)):
            if json:
                show_json(_as_json(found), flush=True)
            else:
                table = lines(found, shutil.get_terminal_size((80, 24)).columns, None, colours)
                show_painted(*([""] if number else []), *table, flush=True)
            if once:
                break
    return DONE


def _follow(pages: RouterPages, colours: Colours) -> None:
    """Draw the table in the terminal until interrupted. While the router can't be reached, the reason is above it."""
    before, read_at, found, why = None, 0.0, None, ""
    while True:
        try:
            status, before_that, now = plain(pages.get("/status")), read_at, time.monotonic()
            found, why = overview(status, before, now - before_that, datetime.now(UTC), plain(pages.unready())), ""
            interval = INTERVAL if before is not None else FIRST_INTERVAL
            before, read_at = status, now
        except RouterError as error:
            why, interval = printable(str(error)), INTERVAL
        _draw(found, why, colours)
        time.sleep(interval)


def _draw(found: Overview | None, why: str, colours: Colours) -> None:
    width, height = shutil.get_terminal_size((80, 24))
    shown = [colours.bad(part) for part in textwrap.wrap(why, width)][:height]
    if found is not None:
        shown += lines(found, width, height - len(shown), colours)
    draw(shown[: height - 1])


def _overviews(pages: RouterPages, read: Callable[[Any], Any]) -> Iterator[Overview]:
    """Yield one overview after another, the first one after `FIRST_INTERVAL`. Raises `RouterError`.

    `read` is applied to the contents of each page.
    """
    before, read_at, interval = read(pages.get("/status")), time.monotonic(), FIRST_INTERVAL
    while True:
        time.sleep(interval)
        status, now = read(pages.get("/status")), time.monotonic()
        yield overview(status, before, now - read_at, datetime.now(UTC), read(pages.unready()))
        before, read_at, interval = status, now, INTERVAL


def _as_json(found: Overview) -> dict[str, Any]:
    """Return an overview with its connections and routes by name, as `/status` has them."""
    shown: dict[str, Any] = asdict(found)
    shown["at"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for kind in ("connections", "routes"):
        shown[kind] = {one.pop("name"): one for one in shown[kind]}
    return shown
