"""Placeholders of a destination that nothing would be put in place of.

A function is a whole token between dots. nats-server sends everything else as it stands, and of a token with text
around a function it keeps the function alone. Whoever writes `x-$1.y` means neither, so a configuration is refused
for it.
"""

from __future__ import annotations

import re

from router_trio.errors.quotes import quoted
from router_trio.subjects.functions import FUNCTIONS

_WHOLE = re.compile(r"\$[+-]?[0-9]+|\{\{[^{}]*\}\}")
_NUMBERED = re.compile(r"\$[+-]?[0-9]|\$\{")
_CALL = re.compile(rf"\{{\s*(?:{'|'.join(FUNCTIONS)})\b|\b(?:{'|'.join(FUNCTIONS)})\(", re.IGNORECASE)


def placeholder_in(pattern: str) -> str | None:
    """Return the first placeholder of a source's pattern, where none has a meaning; None if there is none."""
    return next((token for token in pattern.split(".") if _WHOLE.fullmatch(token) or "{{" in token), None)


def misplaced_placeholder(destination: str) -> str | None:
    """Return what is wrong with a token that looks like a function and is none, or holds more than one; else None."""
    for token in destination.split("."):
        if _WHOLE.fullmatch(token):
            continue
        if token.startswith("{{") and token.endswith("}}"):
            return (
                f"the token {quoted(token)} of {quoted(destination)} has more in it than one function, and all but the "
                "first would be lost; give each function a token of its own, between dots"
            )
        if "{{" in token and "}}" in token:
            return (
                f"the token {quoted(token)} of {quoted(destination)} has text around a function, so it would be sent "
                "as it stands; give the function a token of its own, between dots"
            )
        if "{{" in token or "}}" in token or _CALL.search(token):
            return (
                f"the token {quoted(token)} of {quoted(destination)} looks like a function and is none, so it would be "
                "sent as it stands; write {{name(...)}} as a whole token, without dots in it"
            )
        if _NUMBERED.search(token):
            return (
                f"the token {quoted(token)} of {quoted(destination)} has text around a placeholder, so it would be "
                "sent as it stands; give $1 a token of its own, between dots"
            )
    return None
