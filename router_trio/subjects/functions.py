"""The functions of mappings: parse their calls in a destination, and apply them to the tokens of a subject.

Lengths count bytes of UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router_trio.subjects.patterns import CONTROL

Tokens = list[str]
Piece = Callable[[Tokens], str]
"""Computes one part of the resulting subject."""

_FNV32_OFFSET, _FNV32_PRIME = 2166136261, 16777619


# --- application ---


def constant(token: str, tokens: Tokens) -> str:
    """Return a literal token of the destination."""
    return token


def rest(first: int, tokens: Tokens) -> str:
    """Return the tokens of the subject from index `first` on: the part that `>` matched."""
    return ".".join(tokens[first:])


def from_token(position: int, change: Callable[[str], str], tokens: Tokens) -> str:
    """Return one token of the subject, changed."""
    return change(tokens[position])


def partition(positions: list[int], count: int, tokens: Tokens) -> str:
    """Return the partition by 32-bit FNV-1a of the concatenated tokens, or of the entire subject without positions."""
    if count == 0:
        return "0"
    key = "".join([tokens[position] for position in positions]) if positions else ".".join(tokens)
    digest = _FNV32_OFFSET
    for octet in key.encode("utf-8", "surrogateescape"):
        digest = (digest ^ octet) * _FNV32_PRIME & 0xFFFFFFFF
    # The server treats a negative count as an unsigned number.
    return str(digest % (count % 2**32))


def random_number(random: Callable[[int], int], count: int, tokens: Tokens) -> str:
    """Return a number below `count` chosen by `random`."""
    return "0" if count == 0 else str(random(abs(count)))


def _left(size: int, token: str) -> str:
    return token[:size]


def _right(size: int, token: str) -> str:
    return token[-size:]


def _split_from_left(size: int, token: str) -> str:
    return f"{token[:size]}.{token[size:]}"


def _split_from_right(size: int, token: str) -> str:
    return f"{token[:-size]}.{token[-size:]}"


def _slice_from_left(size: int, token: str) -> str:
    return ".".join([token[start : start + size] for start in range(0, len(token), size)])


def _slice_from_right(size: int, token: str) -> str:
    # A shorter slice comes first.
    first = len(token) % size
    slices = [token[start : start + size] for start in range(first, len(token), size)]
    return ".".join([token[:first], *slices] if first else slices)


def split_at(separator: str, token: str) -> str:
    """Split at each separator. Empty parts are dropped, except that two separators at the start make an empty token."""
    parts = token.split(separator) if separator else list(token)
    return "".join(
        part if number == 0 or (number == 1 and not parts[0]) else f".{part}"
        for number, part in enumerate(parts)
        if part
    )


def sized(size: int, cut: Callable[[int, str], str], token: str) -> str:
    """Cut a token at a number of bytes. A token that is not longer is returned unchanged."""
    if token.isascii():
        return cut(size, token) if size < len(token) else token
    # One character per byte, so that cutting characters cuts bytes.
    octets = token.encode("utf-8", "surrogateescape").decode("latin-1")
    if size >= len(octets):
        return token
    return cut(size, octets).encode("latin-1").decode("utf-8", "surrogateescape")


CUTS: dict[str, Callable[[int, str], str]] = {
    "splitFromLeft": _split_from_left,
    "splitFromRight": _split_from_right,
    "sliceFromLeft": _slice_from_left,
    "sliceFromRight": _slice_from_right,
    "right": _right,
    "left": _left,
}


# --- parsing ---

_INTEGER = re.compile(r"[+-]?[0-9]+")
_COMMA = re.compile(r",[\t\n\f\r ]*")
_MIN_INT32, _MAX_INT32 = -(2**31), 2**31 - 1


class Refusal(Exception):
    """The reason why a token of a destination is invalid: the rest of a sentence that starts with the token."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function call with its arguments as written."""

    name: str
    indexes: tuple[int, ...]
    number: int = 0
    text: str = ""


def parse(token: str) -> Call | None:
    """Return the function call in a token of a destination, or None for a literal token. Raises Refusal."""
    if token.startswith("$"):
        index = _integer(token[1:])
        # `$` without a number is a literal: tokens such as $JS are common.
        if index is not None:
            return Call("wildcard", (index,))
    if len(token) <= 4 or not (token.startswith("{{") and token.endswith("}}")):
        _refuse_control(token)
        return None
    for name, (pattern, read) in FUNCTIONS.items():
        found = pattern.search(token)
        if found is not None:
            return read(name, _COMMA.split(found[1]))
    raise Refusal(f"is not a mapping function: use one of {', '.join(FUNCTIONS)}")


def _refuse_control(token: str) -> None:
    control = CONTROL.search(token)
    if control is not None:
        raise Refusal(f"contains {control[0]!r}, but subjects have no whitespace or control characters: remove it")


def _parse_wildcard(name: str, arguments: list[str]) -> Call:
    _expect(arguments, 1, 1, "wildcard(INDEX)")
    return Call(name, (_index(arguments[0]),))


def _parse_partition(name: str, arguments: list[str]) -> Call:
    number = _int32(arguments[0], "number of partitions", wraps=True)
    return Call(name, tuple(_index(argument) for argument in arguments[1:]), number)


def _parse_index_and_number(name: str, arguments: list[str]) -> Call:
    _expect(arguments, 2, 2, f"{name}(INDEX, NUMBER)")
    return Call(name, (_index(arguments[0]),), _int32(arguments[1], "number", wraps=False))


def _parse_split(name: str, arguments: list[str]) -> Call:
    _expect(arguments, 2, 2, "split(INDEX, SEPARATOR), where the separator is no comma")
    if " " in arguments[1]:
        raise Refusal("has a space in its separator: subjects have none; remove it")
    return Call(name, (_index(arguments[0]),), text=arguments[1])


def _parse_random(name: str, arguments: list[str]) -> Call:
    _expect(arguments, 1, 1, "random(NUMBER)")
    return Call(name, (), _int32(arguments[0], "number", wraps=True))


def _parse_key(name: str, arguments: list[str]) -> Call:
    _expect(arguments, 0, 0, "key()")
    return Call(name, ())


def _expect(arguments: list[str], least: int, most: int, usage: str) -> None:
    count = 0 if arguments == [""] else len(arguments)
    if count < least:
        raise Refusal(f"has too few arguments: write {usage}")
    if count > most:
        raise Refusal(f"has too many arguments: write {usage}")


def _index(text: str) -> int:
    index = _integer(text.strip(" "))
    if index is None:
        raise Refusal(f"has the invalid argument {text!r}: give a wildcard's number, 1 for the source's first")
    return index


def _int32(text: str, what: str, *, wraps: bool) -> int:
    number = _integer(text.strip(" "))
    # The server parses some numbers as 64 bits and truncates them to 32, checking the upper limit only.
    if number is None or number > _MAX_INT32 or (number < _MIN_INT32 and not wraps):
        raise Refusal(f"has the invalid argument {text!r}: give the {what} as an integer of at most {_MAX_INT32}")
    return (number - _MIN_INT32) % 2**32 + _MIN_INT32


def _integer(text: str) -> int | None:
    """Parse a 64-bit integer like Go's `strconv.Atoi`: sign and ASCII digits, no spaces or underscores. Else None."""
    if _INTEGER.fullmatch(text) is None:
        return None
    digits = text.lstrip("+-").lstrip("0")
    if len(digits) > len(str(2**63)):  # int() itself raises for thousands of digits
        return None
    number = int(digits or "0") * (-1 if text[0] == "-" else 1)
    return number if -(2**63) <= number < 2**63 else None


def positions(call: Call, wildcards: list[int], source: str, plain_source: bool) -> list[int]:
    """Return the positions in the subject of the wildcards that a call names. Raises Refusal for an invalid number."""
    if call.name == "key":
        if source and not is_of_bucket(source.split(".")):
            raise Refusal(f"is the key of a bucket, and the source {source!r} is none: use its wildcards")
        return []
    if plain_source:
        if call.name in ("random", "partition"):
            return []
        raise Refusal(f"needs a wildcard, but the source {source!r} has none: put '*' into the source")
    for index in call.indexes:
        if index > len(wildcards):
            raise Refusal(
                f"has the wildcard index {index} out of range, the source {source!r} has {len(wildcards)} '*': "
                "use a smaller index, or put another '*' into the source"
            )
    return [wildcards[index - 1] if index >= 1 else 0 for index in call.indexes]


KEY_AT = 2
"""The index of the first token of a key in the subject of a bucket, `$KV.<bucket>.<key>`."""


def is_of_bucket(source: Sequence[str]) -> bool:
    """Return True if all subjects that match a source, given by its tokens, are those of KV buckets."""
    return len(source) > KEY_AT and source[0] == "$KV"


def _pattern(name: str) -> re.Pattern[str]:
    """Return a pattern for a call of a function, with the first letter of each word in either case."""
    words = re.sub("^[a-z]|[A-Z]", lambda letter: f"[{letter[0].lower()}{letter[0].upper()}]", name)
    space = r"[\t\n\f\r ]*"
    return re.compile(rf"\{{\{{{space}{words}{space}\((.*)\){space}\}}\}}")


# The order matters: the first function whose pattern is found anywhere in a token is called.
FUNCTIONS: dict[str, tuple[re.Pattern[str], Callable[[str, list[str]], Call]]] = {
    "wildcard": (_pattern("wildcard"), _parse_wildcard),
    "partition": (_pattern("partition"), _parse_partition),
    **{name: (_pattern(name), _parse_index_and_number) for name in CUTS},
    "split": (_pattern("split"), _parse_split),
    "random": (_pattern("random"), _parse_random),
    "key": (_pattern("key"), _parse_key),
}
