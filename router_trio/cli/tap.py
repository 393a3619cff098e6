"""`router-trio tap`: the next messages of a route, and what became of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from getpass import getuser
from socket import gethostname
from typing import Any

from router_trio.cli.colours import Colours
from router_trio.cli.command_line import DONE, Parser, number
from router_trio.cli.interruptible import until_interrupted
from router_trio.cli.output import plain, show_json, show_painted, to_stderr
from router_trio.cli.router_pages import DEFAULT_URL, RouterPages
from router_trio.errors import RouterError
from router_trio.terminals import printable, shows_colours

_MARGIN = " " * 13
_GOOD, _DOUBTFUL, _FAINT = ("routed",), ("returned", "duplicate"), ("filtered",)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `tap`."""
    parser.add_argument(
        "url", nargs="?", default=DEFAULT_URL, metavar="URL", help=f"HTTP side of the router; {DEFAULT_URL} if omitted"
    )
    parser.add_argument("route", metavar="ROUTE", help="name of the route")
    parser.add_argument("--fate", metavar="FATE", help="only messages with this fate, such as lost or filtered")
    parser.add_argument("--where", metavar="EXPR", help="only messages for which this expression is true")
    parser.add_argument("--payload", action="store_true", help="show payloads as well, up to 4096 bytes of each")
    parser.add_argument("--limit", type=number(1), metavar="N", help="end after N messages")
    parser.add_argument("--json", action="store_true", help="print each message as one line of JSON")


def tap(
    url: str, route: str, *, fate: str | None, where: str | None, payload: bool, limit: int | None, json: bool
) -> int:
    """Show the next messages of a route, and what became of each.

    Shows messages of a running router when they have their fate: subject,
    headers, size, time in the router, and what became of the copy for
    each destination. Ends with Ctrl-C, or after --limit messages.

    Messages are never delayed or lost for it. Up to 1,000 a second are
    shown; further ones, and those for which this terminal is too slow,
    are counted by their fate. With workers all of them are shown.

    The router needs `tap = true` in [telemetry], and `tap_payloads = true`
    for --payload and for expressions that read body or payload. It logs
    who looks at which route.

    For example:

        router-trio tap orders
        router-trio tap orders --fate dead_lettered --limit 1
        router-trio tap http://10.0.0.7:9001 orders
            --where 'headers["region"] == "eu"' --json
    """
    pages = RouterPages(url)
    wanted = {"route": route, "fate": fate, "where": where, "payloads": payload, "user": _user()}
    shown = _Shown(Colours(enabled=shows_colours(sys.stdout) and not json), as_json=json, limit=limit)
    name = pages.post("/tap", wanted)["tap"]
    try:
        with until_interrupted():
            while not shown.is_over:
                shown.show(pages.get(f"/tap/{name}"))
    finally:
        _close(pages, name)
        to_stderr(f"router-trio: {shown.summary}")
    return DONE


def _close(pages: RouterPages, name: str) -> None:
    with suppress(RouterError):  # the router closes it by itself
        pages.delete(f"/tap/{name}")


def _user() -> str:
    """Return the user and the host that run this command."""
    try:
        return f"{getuser()}@{gethostname()}"
    except (KeyError, OSError):  # the user of a container may have no name
        return gethostname()


class _Shown:
    """The messages shown so far. Those that the router left out are reported with their numbers."""

    def __init__(self, colours: Colours, *, as_json: bool, limit: int | None) -> None:
        self._colours = colours
        self._as_json = as_json
        self._limit = limit
        self._count = 0
        self._left_out: dict[str, int] = {}
        self._numbers = {"shown": 0, "not_matching": 0, "failed": 0, "waiting": 0}
        self._error: str | None = None

    @property
    def is_over(self) -> bool:
        """True if the requested number of messages was shown."""
        return self._limit is not None and self._count >= self._limit

    @property
    def summary(self) -> str:
        """The numbers of messages."""
        parts, numbers = [f"{self._count:,} shown"], self._numbers
        if numbers["not_matching"]:
            parts.append(f"{numbers['not_matching']:,} did not match --where")
        if numbers["failed"]:
            parts.append(f"{numbers['failed']:,} of these because it failed ({self._error})")
        if self._left_out:
            parts.append(f"{sum(self._left_out.values()):,} left out ({_by_fate(self._left_out)})")
        # The last answer may have been interrupted.
        if unread := numbers["waiting"] + numbers["shown"] - self._count:
            parts.append(f"{unread:,} not read")
        return "; ".join(parts)

    def show(self, answer: dict[str, Any]) -> None:
        """Print the messages of an answer of the router."""
        before, self._left_out = self._left_out, plain(answer["left_out"])
        self._error = answer["error"] or self._error
        self._numbers = answer
        for message in answer["messages"]:
            if self.is_over:
                return
            self._count += 1
            if self._as_json:
                show_json(message)
            else:
                show_painted(*lines(message, self._colours))
        self._show_others(before)
        sys.stdout.flush()

    def _show_others(self, before: dict[str, int]) -> None:
        more = {fate: count - before.get(fate, 0) for fate, count in self._left_out.items()}
        more = {fate: count for fate, count in more.items() if count > 0}
        if not more:
            return
        if self._as_json:
            show_json({"left_out": more})
        else:
            text = f"{sum(more.values()):,} more were settled and not shown: {_by_fate(more)}"
            show_painted(_MARGIN + self._colours.faint(text))


def _by_fate(counts: dict[str, int]) -> str:
    return ", ".join(f"{fate} {count:,}" for fate, count in counts.items())


def lines(message: dict[str, Any], colours: Colours) -> Iterator[str]:
    """Yield the lines of a message: its fate, why it failed, its copies, its headers, its payload."""
    message = plain({name: one for name, one in message.items() if name != "payload"}) | {
        name: one for name, one in message.items() if name == "payload"
    }
    fate = message["fate"]
    paint = colours.bad
    if fate in _GOOD:
        paint = colours.good
    elif fate in _DOUBTFUL:
        paint = colours.doubtful
    elif fate in _FAINT:
        paint = colours.faint
    at = datetime.fromisoformat(message["at"]).astimezone().strftime("%H:%M:%S.%f")[:12]
    place = f"  {message['stream']} {message['sequence']}" if "stream" in message else ""
    again = f"  delivery {message['deliveries']}" if message.get("deliveries", 1) > 1 else ""
    facts = colours.faint(f"{place}{again}  {message['size']:,} B  {message['ms']:,.1f} ms")
    yield f"{colours.faint(at)} {paint(fate)} {colours.bold(message['subject'])}{facts}"
    if "reason" in message:
        detail = f": {message['detail']}" if message["detail"] else ""
        yield f"{_MARGIN}{colours.bad(message['reason'])}{detail}"
    for copy in message["to"]:
        yield f"{_MARGIN}-> {copy['destination']}  {_what_became(copy, colours)}"
    for name, value in message["headers"]:
        yield f"{_MARGIN}{colours.faint(name + ':')} {value}"
    if "more_headers" in message:
        more = f"and {message['more_headers']} more headers"
        yield _MARGIN + colours.faint(more)
    yield from (_MARGIN + line for line in _payload(message, colours))


def _what_became(copy: dict[str, Any], colours: Colours) -> str:
    if copy["fate"] not in ("acked", "fenced"):
        return colours.bad(f"{copy['fate']}: {copy['reason']}" if "reason" in copy else copy["fate"])
    place = f" {copy['stream']} {copy['sequence']}" if "stream" in copy else ""
    return colours.good(copy["fate"]) + place + (" (duplicate)" if "duplicate" in copy else "")


def _payload(message: dict[str, Any], colours: Colours) -> Iterator[str]:
    text = message.get("payload")
    if text is not None:
        yield from map(printable, text.split("\n"))
    elif "payload_base64" in message:
        yield f"{colours.faint('base64')} {message['payload_base64']}"
    if "cut" in message:
        yield colours.faint("(only the beginning)")
