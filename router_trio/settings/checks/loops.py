"""Whether a route can send a message to its own source.

Such a route turns one message into an endless stream of them, so it is refused before it runs. The answer errs on the
side of refusing: it is True when some message, not every message, would come back.
"""

from __future__ import annotations

import re
from enum import Enum

_FUNCTION = re.compile(r"\{\{\s*([A-Za-z]+)")


class _Produced(Enum):
    """What a placeholder of a destination turns into."""

    TOKEN = "one token, any text"
    NUMBER = "one token of digits"
    TOKENS = "one or more tokens, any text"
    REST = "the tokens that > stood for"


def feeds_itself(source: str, destination: str) -> bool:
    """Return True if what `destination` can become overlaps `source`. Both must be valid already."""
    return _meet(source.split("."), [_produced(token) for token in destination.split(".")])


def chosen_by_sender(token: str) -> bool:
    """Return True if a token of a destination stands for text of the message's subject."""
    return _produced(token) in (_Produced.TOKEN, _Produced.TOKENS, _Produced.REST)


def _produced(token: str) -> str | _Produced:
    if token == ">":
        return _Produced.REST
    if re.fullmatch(r"\$[+-]?[0-9]+", token):
        return _Produced.TOKEN
    if not (token.startswith("{{") and token.endswith("}}")):
        return token
    functions = [name.lower() for name in _FUNCTION.findall(token)]
    if any(name.startswith(("split", "slice")) for name in functions):
        return _Produced.TOKENS
    if all(name in ("partition", "random") for name in functions):
        return _Produced.NUMBER
    return _Produced.TOKEN


def _meet(source: list[str], produced: list[str | _Produced]) -> bool:
    if not source or not produced:
        return not source and not produced
    if source[0] == ">" or produced[0] is _Produced.REST:
        return True
    if source[0] != "*" and not _can_be(source[0], produced[0]):
        return False
    if _meet(source[1:], produced[1:]):
        return True
    return produced[0] is _Produced.TOKENS and _meet(source[1:], produced)


def _can_be(token: str, produced: str | _Produced) -> bool:
    if produced is _Produced.NUMBER:
        return token.isascii() and token.isdigit()
    return isinstance(produced, _Produced) or produced == token
