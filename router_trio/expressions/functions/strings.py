"""The functions on strings, each within a bound of what it makes."""

from __future__ import annotations

from router_trio.errors import EvaluationError
from router_trio.expressions.values import MAX_SIZE, kind_name, sized, too_large

MAX_PARTS = 100_000
"""Elements that `split` makes of a string."""

_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_LOWER = str.maketrans(_UPPER, _UPPER.lower())
_TO_UPPER = str.maketrans(_UPPER.lower(), _UPPER)
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
"""What `trim` takes off: the white space of Unicode, which is not quite that of Python."""


def lower_ascii(text: str) -> str:
    """Return the string with A to Z in lower case."""
    return text.lower() if text.isascii() else text.translate(_TO_LOWER)


def upper_ascii(text: str) -> str:
    """Return the string with a to z in upper case."""
    return text.upper() if text.isascii() else text.translate(_TO_UPPER)


def trim(text: str) -> str:
    """Return the string without white space at both ends."""
    return text.strip(WHITE_SPACE)


def char_at(text: str, index: int) -> str:
    """Return the character at a position, "" at the end. Raises EvaluationError beyond it."""
    _check(text, index)
    return text[index : index + 1]


def index_of(text: str, part: str, start: int = 0) -> int:
    """Return where a part first is, at or behind `start`, or -1. Raises EvaluationError if `start` is out of range."""
    if part == "" and start == 0:
        return 0
    _check(text, start)
    return text.find(part, start)


def last_index_of(text: str, part: str, start: int | None = None) -> int:
    """Return where a part last is, at or before `start`, or -1. Raises EvaluationError if `start` is out of range."""
    if start is None:
        return text.rfind(part)
    _check(text, start)
    return text.rfind(part, 0, start + len(part))


def substring(text: str, start: int, end: int | None = None) -> str:
    """Return a part of the string. Raises EvaluationError if it is not within."""
    _check(text, start)
    if end is None:
        return text[start:]
    _check(text, end)
    if end < start:
        raise EvaluationError("substring() ends before it begins")
    return text[start:end]


def replace(text: str, old: str, new: str, limit: int = -1) -> str:
    """Return the string with the first `limit` occurrences replaced, all if it is negative."""
    if len(new) > len(old):
        count = text.count(old)
        count = count if limit < 0 else min(count, limit)
        if len(text) + count * (len(new) - len(old)) > MAX_SIZE:
            raise too_large()
    result: str = sized(text.replace(old, new, max(limit, -1)))
    return result


def split(text: str, separator: str, limit: int = -1) -> list[str]:
    """Return the parts of a string, at most `limit` of them if that is not negative."""
    if limit == 0:
        return []
    if limit == 1:
        return [text]
    most = limit if limit > 0 else MAX_PARTS + 1
    if separator == "":
        parts = list(text[: most - 1])
        rest = text[most - 1 :]
        parts += [rest] if rest or not parts else []
    else:
        parts = text.split(separator, most - 1)
    if len(parts) > MAX_PARTS:
        raise EvaluationError(f"split() makes more than {MAX_PARTS} parts")
    return parts


def join(parts: list[str], separator: str = "") -> str:
    """Return the strings of a list as one. Raises EvaluationError if one is no string."""
    total = max(0, len(parts) - 1) * len(separator)
    for part in parts:
        if part.__class__ is not str:
            raise EvaluationError(f"join() takes strings, and there is a {kind_name(part)} among them")
        total += len(part)
    if total > MAX_SIZE:
        raise too_large()
    return separator.join(parts)


def _check(text: str, index: int) -> None:
    if not 0 <= index <= len(text):
        raise EvaluationError("a position is out of range for the string")
