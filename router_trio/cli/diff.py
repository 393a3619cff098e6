"""`router-trio diff`: show what a reload would change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, Parser, UsageError, configuration
from router_trio.cli.configuration import STDIN, load_with_handlers

if TYPE_CHECKING:
    from router_trio.settings.reload.difference import Change, Difference, Names


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `diff`."""
    parser.add_argument("old", type=configuration, metavar="OLD", help="the running configuration, a TOML file")
    parser.add_argument("new", type=configuration, metavar="NEW", help="the new configuration, a TOML file")


def diff(old: Path, new: Path) -> int:
    """Show what a reload from one configuration to another would do.

    Prints one line for each connection, route and stream: added, removed,
    changed or unchanged. Below a changed one, each changed key is listed
    with its old and its new value; credentials are never shown. Keys that
    a reload does not apply are marked "(needs a restart)". Environment
    variables ROUTER_TRIO_... apply to both configurations, and the
    handlers of both are imported.

    For example:

        router-trio diff /etc/router-trio/router.toml router.toml
    """
    if str(old) == str(new) == STDIN:
        raise UsageError("OLD and NEW can't both be -, since standard input is read once")
    before, after = load_with_handlers(old), load_with_handlers(new)
    from router_trio.settings.reload.difference import difference

    for line in lines(difference(before, after)):
        print(line)
    return DONE


def lines(found: Difference) -> Iterator[str]:
    """Yield the lines that `diff` prints."""
    for key in found.process:
        yield f"{key}{' (needs a restart)' if key.needs_restart else ''}"
    yield from _lines("connection", found.connections)
    yield from _lines("stream", found.streams)
    yield from _lines("route", found.routes)


def _lines(kind: str, names: Names) -> Iterator[str]:
    yield from (f"{kind} {name}: added" for name in names.added)
    yield from (f"{kind} {name}: removed" for name in names.removed)
    for change in names.changed:
        yield f"{kind} {change.name}: changed{_kept(change)}"
        yield from (f"    {key}" for key in change.keys)
        yield from (f"    its connection {name} changes" for name in change.connections)
    yield from (f"{kind} {name}: unchanged" for name in names.unchanged)


def _kept(change: Change) -> str:
    return ", and keeps its subscription" if change.keeps_subscription else ""
