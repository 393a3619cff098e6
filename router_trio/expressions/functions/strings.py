"""The functions on strings, each within a bound of what it makes."""

from __future__ import annotations

from router_trio.errors import EvaluationError
from router_trio.expressions.values import MAX_SIZE, kind_name, sized, too_large

MAX_PARTS = 100_000
"""Elements that `split` makes of a string."""
QUICKLY_FOUND = 16_384
"""The product of two lengths up to which `rfind` is quicker than `find` from the other end."""

WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
"""That of Unicode, which is not quite that of Python."""
QUICKLY_TRIMMED = 64
"""Characters of a text of which the ends are looked at one by one."""
SEPARATORS = "\x1c\x1d\x1e\x1f"
"""White space for Python, and none for Unicode."""


_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_LOWER = str.maketrans(_UPPER, _UPPER.lower())
_TO_UPPER = str.maketrans(_UPPER.lower(), _UPPER)


def is_encodable(text: str) -> bool:
    """Return True if a text has no bytes of a header in it that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lower_ascii(text: str) -> str:
    """Return the string with A to Z in lower case."""
    if text.isascii():
        return text.lower()
    # Methods of bytes change ASCII alone, and take a twentieth of the time.
    return text.encode().lower().decode() if is_encodable(text) else text.translate(_TO_LOWER)


def upper_ascii(text: str) -> str:
    """Return the string with a to z in upper case."""
    if text.isascii():
        return text.upper()
    return text.encode().upper().decode() if is_encodable(text) else text.translate(_TO_UPPER)


def trim(text: str) -> str:
    """Return the string without the white space of Unicode at both ends."""
    if len(text) <= QUICKLY_TRIMMED:
        return text.strip(WHITE_SPACE)
    # With a set of characters of its own `strip` takes five times as long.
    bare = text.lstrip()
    lead = text[: len(text) - len(bare)]
    start = min((at for one in SEPARATORS if (at := lead.find(one)) >= 0), default=len(lead))
    if not bare:
        return text[start : 1 + max(map(lead.rfind, SEPARATORS))]
    bare = text.rstrip()
    tail = text[len(bare) :]
    return text[start : len(bare) + 1 + max(map(tail.rfind, SEPARATORS))]


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
    if start is not None:
        _check(text, start)
        text = text[: start + len(part)]
    if len(text) * len(part) <= QUICKLY_FOUND:
        return text.rfind(part)
    # `rfind` takes time in proportion to both lengths, `find` to one.
    at = text[::-1].find(part[::-1])
    return -1 if at < 0 else len(text) - at - len(part)


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
