"""The file with the sentences of all events, by situation."""

from __future__ import annotations

from pathlib import Path

from tests.unit.events.situations import (  # noqa: F401 - they register themselves
    connections,
    processes,
    publishes,
    router,
    routes,
    streams,
)
from tests.unit.events.situations.situation import SITUATIONS

GOLDEN = Path(__file__).parents[1] / "sentences.txt"

BEGIN = """\
Each event in words, as the code that emits it fills it: code, level, sentence. A test compares, and a person reads it.
Made by `python -m tests.unit.events.situations`.
"""


def made() -> str:
    """Return the text of the file."""
    return BEGIN + "".join("\n".join(("", f"# {title}", *one.lines(), "")) for title, one in SITUATIONS.items())


def written(text: str) -> dict[str, list[str]]:
    """Return the lines of each situation, by its title."""
    sections: dict[str, list[str]] = {}
    for section in text.split("\n# ")[1:]:
        title, *lines = section.splitlines()
        sections[title] = [line for line in lines if line]
    return sections
