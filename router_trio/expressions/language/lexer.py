"""The lexer: from the text of an expression to its tokens, with decoded literals."""

from __future__ import annotations

import re
from dataclasses import dataclass

from router_trio.errors import ExpressionError
from router_trio.expressions.language.source import Source

KEYWORDS = frozenset({"false", "in", "null", "true"})
RESERVED = frozenset({
    "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package",
    "namespace", "return", "var", "void", "while",
})  # fmt: skip
"""Words that CEL reserves for host languages. They can't be names of variables or functions."""

_TOKEN = re.compile(
    r"""
      (?P<space> [\t\n\f\r\ ]+ | //[^\n]* )
    | (?P<text> (?:[bB]?[rR]?) (?: \"{3} | '{3} | [\"'] ) )
    | (?P<double> [0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)? | [0-9]+[eE][+-]?[0-9]+ | \.[0-9]+(?:[eE][+-]?[0-9]+)? )
    | (?P<int> (?: 0x[0-9a-fA-F]+ | [0-9]+ ) [uU]? )
    | (?P<name> [_a-zA-Z][_a-zA-Z0-9]* )
    | (?P<quoted> `[a-zA-Z0-9_./\ -]+` )
    | (?P<mark> && | \|\| | == | != | <= | >= | [-+*/%!<>?:.,()\[\]{}] )
    """,
    re.VERBOSE,
)
_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    **{mark: mark for mark in "\\?\"'`"},
}
_CODE = re.compile(r"[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of kind `int`, `uint`, `double`, `string`, `bytes`, `name`, `quoted`, `end`, a keyword or an operator.

    `start` and `end` are positions in the text; `value` is the value of a literal, or the name.
    """

    kind: str
    start: int
    end: int
    value: object = None


def tokens(source: Source) -> list[Token]:
    """Return the tokens of the text, with `end` as the last. Raises ExpressionError for an invalid token."""
    text, found, at = source.text, [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            known = "an operator" if text[at] in "=&|" else "part of the language"
            raise source.error(f"{text[at]!r} is not {known}", at)
        start, at, kind, piece = at, match.end(), match.lastgroup, match[0]
        if kind == "space":
            continue
        if kind == "text":
            token, at = _literal(source, start, piece)
        elif kind == "int":
            token = Token("uint" if piece[-1] in "uU" else "int", start, at, int(piece.rstrip("uU"), _base(piece)))
        elif kind == "double":
            token = Token("double", start, at, float(piece))
        elif kind == "name":
            token = Token(piece if piece in KEYWORDS else "name", start, at, piece)
        elif kind == "quoted":
            token = Token("quoted", start, at, piece[1:-1])
        else:
            token = Token(piece, start, at)
        if kind in ("int", "double") and text[at : at + 1].isidentifier():
            raise source.error(
                "a number is followed by letters: put a space or an operator between them", start, at + 1
            )
        found.append(token)
    found.append(Token("end", len(text), len(text)))
    return found


def _base(piece: str) -> int:
    return 16 if piece.startswith("0x") else 10


def _literal(source: Source, start: int, opening: str) -> tuple[Token, int]:
    """Return the token of the string or bytes that starts here, and the position after it."""
    text = source.text
    prefix = opening.rstrip("\"'").lower()
    mark = opening[len(prefix) :]
    raw, as_bytes = "r" in prefix, "b" in prefix
    at = start + len(opening)
    parts: list[str | bytes] = []
    while True:
        if at >= len(text) or (len(mark) == 1 and text[at] in "\r\n"):
            raise source.error(f"the {'bytes' if as_bytes else 'string'} has no end: {mark} is missing", start, at)
        if text.startswith(mark, at):
            break
        # In a raw string a backslash is an ordinary character, even before a quote.
        if raw or text[at] != "\\":
            parts.append(text[at])
            at += 1
        else:
            value, at = _escape(source, at, as_bytes)
            parts.append(value)
    end = at + len(mark)
    try:
        encoded = b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    except UnicodeEncodeError:
        problem = "the text contains half of a surrogate pair, which is not a character"
        raise source.error(problem, start, end) from None
    value = encoded if as_bytes else "".join(part for part in parts if isinstance(part, str))
    return Token("bytes" if as_bytes else "string", start, end, value), end


def _escape(source: Source, at: int, as_bytes: bool) -> tuple[str | bytes, int]:
    """Return the value of the escape sequence at this position, and the position after it."""
    simple = _ESCAPES.get(source.text[at + 1 : at + 2])
    if simple is not None:
        return simple, at + 2
    match = _CODE.match(source.text, at + 1)
    if match is None:
        raise _bad_escape(
            source, at, "CEL does not have this escape: write \\\\ for a backslash, or a raw string r'...'"
        )
    octet, short, long, octal = match.groups()
    if as_bytes and (short or long):
        raise _bad_escape(source, at, "\\u and \\U are for strings only: write \\x and two digits in bytes")
    code = int(octal, 8) if octal else int(octet or short or long, 16)
    if as_bytes:
        return bytes([code]), match.end()
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise _bad_escape(source, at, "the escape does not stand for a Unicode character")
    return chr(code), match.end()


def _bad_escape(source: Source, at: int, message: str) -> ExpressionError:
    return source.error(message, at, at + 2)
