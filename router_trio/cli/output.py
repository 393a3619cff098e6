"""Print to the terminal. No other module of the commands does, so that no text from outside reaches it as it is.

Subjects, headers, payloads and descriptions of servers may contain escape sequences, which can move the cursor, change
the title or paste into the shell; marks that turn the direction of text; and line breaks that forge a line.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from router_trio.terminals import printable

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
_PAINT = re.compile(r"(\x1b\[(?:0|1|2|31|32|33)m)")
"""A sequence that `Colours` writes."""


def show(*lines: str, flush: bool = False) -> None:
    """Print lines to stdout. Characters that can't be printed are escaped, line breaks included."""
    _write(sys.stdout, map(printable, lines), flush=flush)


def show_painted(*lines: str, flush: bool = False) -> None:
    """Print lines to stdout that `Colours` may have painted. Texts from outside have to be made `plain` before."""
    _write(sys.stdout, map(_painted, lines), flush=flush)


def show_json(value: Any, *, indent: int | None = None, flush: bool = False) -> None:
    """Print a value as JSON to stdout, in printable ASCII."""
    print(json.dumps(value, indent=indent), flush=flush)


def to_stderr(*lines: str) -> None:
    """Print lines to stderr, as `show` does."""
    _write(sys.stderr, map(printable, lines), flush=False)


def ask(question: str) -> None:
    """Print a question to stderr, on whose line the answer is typed."""
    print(f"{printable(question)} ", end="", file=sys.stderr, flush=True)


def draw(lines: Sequence[str]) -> None:
    """Draw painted lines from the top of the terminal, and clear what is below and to the right of them."""
    sys.stdout.write(_HOME + "".join(f"{_painted(line)}{_TO_END_OF_LINE}\r\n" for line in lines) + _TO_END)
    sys.stdout.flush()


@contextmanager
def screen() -> Iterator[None]:
    """Use the alternate screen of the terminal, and restore the terminal at the end."""
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def plain(value: Any) -> Any:
    """Return decoded JSON with all its texts `printable`, so that it can be painted."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {plain(name): plain(one) for name, one in value.items()}
    return value


def _painted(line: str) -> str:
    return "".join(part if number % 2 else printable(part) for number, part in enumerate(_PAINT.split(line)))


def _write(stream: TextIO | None, lines: Iterator[str], *, flush: bool) -> None:
    for line in lines:
        print(line, file=stream)
    if flush and stream is not None:
        stream.flush()
