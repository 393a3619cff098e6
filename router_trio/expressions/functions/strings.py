"""Functions on strings, with bounded results."""

from __future__ import annotations

from router_trio.errors import EvaluationError
from router_trio.expressions.values import MAX_SIZE, a_kind, sized, too_large

MAX_PARTS = 100_000
"""Maximum number of parts that `split` returns."""
QUICKLY_FOUND = 16_384
"""Product of two lengths up to which `rfind` is faster than `find` on reversed strings."""

WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)
"""Unicode's white space, which differs slightly from Python's."""
QUICKLY_TRIMMED = 64
"""Number of characters up to which a text is trimmed with `str.strip(WHITE_SPACE)`."""
SEPARATORS = "\x1c\x1d\x1e\x1f"
"""Characters that are white space in Python but not in Unicode."""


_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TO_LOWER = str.maketrans(_UPPER, _UPPER.lower())
_TO_UPPER = str.maketrans(_UPPER.lower(), _UPPER)


def is_encodable(text: str) -> bool:
    """Return True if a text can be encoded as UTF-8: it contains no invalid bytes of a header."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lower_ascii(text: str) -> str:
    """Return the string with A to Z in lower case."""
    if text.isascii():
        return text.lower()
    # Methods of bytes change ASCII only, and take a twentieth of the time.
    return text.encode().lower().decode() if is_encodable(text) else text.translate(_TO_LOWER)


def upper_ascii(text: str) -> str:
    """Return the string with a to z in upper case."""
    if text.isascii():
        return text.upper()
    return text.encode().upper().decode() if is_encodable(text) else text.translate(_TO_UPPER)


def trim(text: str) -> str:
    """Return the string without Unicode white space at both ends."""
    if len(text) <= QUICKLY_TRIMMED:
        return text.strip(WHITE_SPACE)
    # `strip` with an explicit set of characters takes five times as long.
    bare = text.lstrip()
    lead = text[: len(text) - len(bare)]
    start = min((at for one in SEPARATORS if (at := lead.find(one)) >= 0), default=len(lead))
    if not bare:
        return text[start : 1 + max(map(lead.rfind, SEPARATORS))]
    bare = text.rstrip()
    tail = text[len(bare) :]
    return text[start : len(bare) + 1 + max(map(tail.rfind, SEPARATORS))]


def char_at(text: str, index: int) -> str:
    """Return the character at a position, `""` at the end. Raises EvaluationError if the position is out of range."""
    _check(text, index)
    return text[index : index + 1]


def index_of(text: str, part: str, start: int = 0) -> int:
    """Return the position of the first occurrence of a part, at or after `start`, or -1.

    Raises EvaluationError if `start` is out of range.
    """
    if part == "" and start == 0:
        return 0
    _check(text, start)
    return text.find(part, start)


def last_index_of(text: str, part: str, start: int | None = None) -> int:
    """Return the position of the last occurrence of a part, at or before `start`, or -1.

    Raises EvaluationError if `start` is out of range.
    """
    if start is not None:
        _check(text, start)
        text = text[: start + len(part)]
    if len(text) * len(part) <= QUICKLY_FOUND:
        return text.rfind(part)
    # The time of `rfind` is proportional to the product of both lengths, that of `find` to one length.
    at = text[::-1].find(part[::-1])
    return -1 if at < 0 else len(text) - at - len(part)


def substring(text: str, start: int, end: int | None = None) -> str:
    """Return a part of the string. Raises EvaluationError if a position is out of range."""
    _check(text, start)
    if end is None:
        return text[start:]
    _check(text, end)
    if end < start:
        raise EvaluationError("substring() ends before it begins")
    return text[start:end]


def replace(text: str, old: str, new: str, limit: int = -1) -> str:
    """Return the string with the first `limit` occurrences replaced, or all if `limit` is negative."""
    if len(new) > len(old):
        count = text.count(old)
        count = count if limit < 0 else min(count, limit)
        if len(text) + count * (len(new) - len(old)) > MAX_SIZE:
            raise too_large()
    result: str = sized(text.replace(old, new, max(limit, -1)))
    return result


def split(text: str, separator: str, limit: int = -1) -> list[str]:
    """Return the parts of a string between separators, at most `limit` of them unless `limit` is negative."""
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
        raise EvaluationError(f"split() would make more than {MAX_PARTS} parts")
    return parts


def join(parts: list[str], separator: str = "") -> str:
    """Concatenate the strings of a list. Raises EvaluationError if an element is not a string."""
    total = max(0, len(parts) - 1) * len(separator)
    for part in parts:
        if part.__class__ is not str:
            raise EvaluationError(f"join() takes a list of strings, but the list contains {a_kind(part)}")
        total += len(part)
    if total > MAX_SIZE:
        raise too_large()
    return separator.join(parts)


def _check(text: str, index: int) -> None:
    if not 0 <= index <= len(text):
        raise EvaluationError("the position is out of range for the string")
