"""Whether stdout or stderr is a terminal and shows colours, and what may be written to one.

Commands ask at once, so this imports nothing else.
"""

from __future__ import annotations

import os
from typing import TextIO


def is_terminal(stream: TextIO | None) -> bool:
    """Return True if stdout or stderr is a terminal; False if it is missing or closed."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # it is an object of the program that lacks the method, or is closed
        return False


def shows_colours(stream: TextIO | None) -> bool:
    """Return True if a stream is a terminal that shows colours and NO_COLOR is not set (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Return the text on one line: what a terminal would act upon, and what can't be seen, is escaped.

    That is every character which is no letter, mark, number, sign or plain space.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
