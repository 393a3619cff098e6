"""Whether stdout or stderr is a terminal, and shows colours. Commands ask at once, so this imports nothing else."""

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
