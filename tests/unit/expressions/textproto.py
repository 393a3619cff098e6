"""Parse protobuf's text format, as far as the conformance files of CEL use it."""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]* | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*') | (?P<word>-?[\w.+-]+)
    | (?P<any>\[[\w./]+\]) | (?P<mark>[{}<>:,;\[\]])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SIMPLE = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}

Fields = dict[str, list[Any]]
"""A message: the values of each field. A value is a message, the bytes of a string, or a word."""


def read(text: str) -> Fields:
    """Return the message in a text."""
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None, text[at : at + 40]
        if match.lastgroup is not None:
            tokens.append((match.lastgroup, match[0]))
        at = match.end()
    fields, end = _message(tokens, 0)
    assert end == len(tokens)
    return fields


def _message(tokens: list[tuple[str, str]], at: int) -> tuple[Fields, int]:
    fields: Fields = {}
    while at < len(tokens) and tokens[at][1] not in ("}", ">"):
        kind, name = tokens[at]
        assert kind in ("word", "any"), tokens[at]
        at += 1
        if tokens[at][1] == ":":
            at += 1
        if tokens[at][1] == "[":
            at += 1
            while tokens[at][1] != "]":
                value, at = _value(tokens, at)
                fields.setdefault(name, []).append(value)
                at += tokens[at][1] == ","
            at += 1
        else:
            value, at = _value(tokens, at)
            fields.setdefault(name, []).append(value)
        if at < len(tokens) and tokens[at][1] in (",", ";"):
            at += 1
    return fields, at


def _value(tokens: list[tuple[str, str]], at: int) -> tuple[Any, int]:
    kind, text = tokens[at]
    if text in ("{", "<"):
        fields, end = _message(tokens, at + 1)
        return fields, end + 1
    if kind == "string":
        parts = []
        while at < len(tokens) and tokens[at][0] == "string":
            parts.append(_ESCAPE.sub(_unescaped, tokens[at][1][1:-1].encode()))
            at += 1
        return b"".join(parts), at
    assert kind == "word", text
    return text, at + 1


def _unescaped(match: re.Match[bytes]) -> bytes:
    octal, hexadecimal, short, long, other = match.groups()
    if octal or hexadecimal:
        return bytes([int(octal, 8) if octal else int(hexadecimal, 16)])
    if short or long:
        return chr(int(short or long, 16)).encode()
    return _SIMPLE.get(other, other)
