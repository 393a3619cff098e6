"""Explain how to correct text that is not TOML: by a table of the text before and behind a mistake.

Only keys of the file are quoted, never values: they may be secrets.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from router_trio.errors.quotes import excerpt

LONGEST_LOOKED_AT = 200
"""Maximum number of characters before and behind a mistake that are compared."""

_PLACE = re.compile(r"\(at line (\d+), column (\d+)\)$")
_KEY = r"(?P<key>[A-Za-z0-9_.\-]+|\"[^\"]*\")"
_BEGINS = rf"{_KEY}\s*=\s*"
_IN_LIST = rf"{_BEGINS}\[[^\[\]]*"
_IN_QUOTES = "a text is in quotes: write {value}"

_CURES = tuple(
    (re.compile(rf"(?:{before})\Z"), re.compile(behind), cure)
    for before, behind, cure in (
        (r".*", "[\u2018-\u201e]", "write straight quotes, \" or '"),
        (r".*", r"//", "a comment begins with #"),
        (r".*", r"\s*[;,]\s*(?:#|$)", "a line ends without ',' or ';'"),
        (rf".*?{_BEGINS}", r"(?:True|TRUE|[Yy]es|[Oo]n)\b", "write {key} = true"),
        (rf".*?{_BEGINS}", r"(?:False|FALSE|[Nn]o|[Oo]ff)\b", "write {key} = false"),
        (rf".*?{_BEGINS}", r"(?:[Nn]ull|None|nil)\b", "leave {key} out: what is not there has its default"),
        (rf".*?{_BEGINS}", r"=", "write {key} = with one '='"),
        (rf".*?{_BEGINS}", r"\s*(?:#|$)", "a value is missing behind {key} ="),
        (rf".*?{_BEGINS}[\"'][^\"']*", r"$", "the quote that ends the text of {key} is missing"),
        (rf".*?{_BEGINS}(?:\[.*)?(?:\"[^\"]*|'[^']*)", r"$", "the quote that ends a text of {key} is missing"),
        (rf".*?{_BEGINS}\"[^\"]*\"", r"\s*[^\s#]", "put a text that has double quotes into single ones: {key} = '...'"),
        (rf".*?{_BEGINS}'[^']*'", r"\s*[^\s#]", "put a text that has single quotes into double ones: {key} = \"...\""),
        (rf".*?{_BEGINS}\"[^\"]*", r".", "write a backslash twice, or put the text into single quotes: {key} = '...'"),
        (rf".*?{_BEGINS}[\d.]+", r"\s*[A-Za-z]", _IN_QUOTES),
        (rf".*?{_IN_LIST}", r"[^\s\]]", "a text is in quotes: write {key} = [\"...\"]"),
        (rf".*?{_BEGINS}", r"(?!\.\d)\S", _IN_QUOTES),
        (rf"\s*{_KEY}", r"\s*:", "write {key} = ... for a key, or [{key}] in a line of its own for a table"),
        (rf".*?{_KEY}", r"\s*:", "a key is followed by '=': write {key} = ..."),
        (rf"\s*{_KEY}\s*", r"(?:\w|$)", "a key is followed by '=': write {key} = ..."),
        (r"\s*", r"\{", "this is JSON, and TOML is needed: router-trio init writes a file to start from"),
        (r".*\{.*,\s*", r".*", "what is in braces stands on one line, without a ',' at its end"),
        (r"\s*\[(?P<key>routes|streams|positions|tests)", r"\]", "each of several has two brackets: write [[{key}]]"),
    )
)  # fmt: skip


def explained(message: str, text: str, lists: Collection[str]) -> str:
    """Return the message of `tomllib` for a text, with the place of the mistake, and the cure if it is known.

    `lists` are the keys whose values are lists of texts.
    """
    lines = text.split("\n")
    message = message.replace("(at end of document)", f"(at line {len(lines)}, column {len(lines[-1]) + 1})")
    place = _PLACE.search(message)
    cure = "" if place is None else _cure(lines, int(place[1]), int(place[2]), message, lists)
    return f"{message}: {cure}" if cure else message


def _cure(lines: list[str], number: int, column: int, message: str, lists: Collection[str]) -> str:
    """Return the cure for a mistake at a place, `""` if it is not known."""
    if message.startswith("Cannot overwrite"):
        return "a key or a table of this name stands above already: keep one of them"
    line = lines[min(number, len(lines)) - 1]
    if not line and number > 1 and number == len(lines):
        line, column = lines[number - 2], len(lines[number - 2]) + 1  # the position is behind the last line
    before, behind = line[: column - 1][-LONGEST_LOOKED_AT:], line[column - 1 :][:LONGEST_LOOKED_AT]
    for pattern_before, pattern_behind, cure in _CURES:
        found = pattern_before.match(before)
        if found is not None and pattern_behind.match(behind):
            key = excerpt(found["key"]) if "key" in found.re.groupindex else ""
            value = f'{key} = ["..."]' if key in lists else f'{key} = "..."'
            return cure.format(key=key, value=value)
    return ""
