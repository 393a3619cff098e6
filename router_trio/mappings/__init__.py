"""Subject mappings: from the subject that a message came on to the subject that it goes to.

Syntax and results are those of nats-server 2.15's account mappings (`server/subject_transform.go`, not strict), down
to its oddities, so that a mapping can move between a server's configuration and a route without change:

- A token is a function only as a whole: it starts with `{{` and ends with `}}`, or is `$` and a number. In `eu-$1`
  or `eu-{{wildcard(1)}}` there is no function; such a token is sent as it stands.
- A token holds one function. Of several, the first in the order of `_FUNCTIONS` wins, and all text around it is lost.
- Lengths and positions count bytes of UTF-8. A character cut in two becomes surrogate escapes.
- A wildcard index below 1 means the subject's first token.
- `partition` without indexes hashes the whole subject. So does every `partition` when the source has no wildcards.

Where the server accepts what can only harm, this module refuses: an empty destination (which crashes the server),
control characters, and a result that is no valid subject, such as the empty token that `split` makes of `--a` (a
message that the server drops without a word).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from random import randrange

from router_trio.errors import MappingError
from router_trio.subjects import CONTROL, is_valid_subject, matches_tokens

_Tokens = list[str]
_Piece = Callable[[_Tokens], str]

_INTEGER = re.compile(r"[+-]?[0-9]+")
_COMMA = re.compile(r",[\t\n\f\r ]*")
_MIN_INT32, _MAX_INT32 = -(2**31), 2**31 - 1
_FNV32_OFFSET, _FNV32_PRIME = 2166136261, 16777619


@dataclass(frozen=True, slots=True)
class Mapping:
    """A compiled mapping. Make one with `Mapping.compile`; it never changes and keeps no state."""

    source: str
    destination: str
    deterministic: bool
    """False when the destination uses `random`: then results must not be cached."""
    literal: bool
    """True when the destination holds no placeholder, so that every subject maps to the destination itself."""
    _source_tokens: tuple[str, ...] = field(repr=False, compare=False)
    _pieces: tuple[_Piece, ...] = field(repr=False, compare=False)

    @classmethod
    def compile(cls, source: str, destination: str, *, random: Callable[[int], int] = randrange) -> Mapping:
        """Check a mapping and prepare it for use.

        `source` is a pattern, `destination` a subject that may hold functions. `random(n)` gives an integer of at
        least 0 and below n, for the function of that name.

        Wildcards of the source need not all be used. A `>` must end both or neither.

        Raises MappingError, naming the destination, the function and the cure.
        """
        source_tokens = _split(source, "source", source, destination)
        tokens = _split(destination, "destination", source, destination)
        if "*" in tokens:
            raise MappingError(
                f"destination {destination!r} has the wildcard '*': "
                "say which of the source's tokens belongs there, as in {{wildcard(1)}}"
            )
        if (source_tokens[-1] == ">") != (tokens[-1] == ">"):
            raise MappingError(
                f"destination {destination!r} and source {source!r} must both end in '>', or neither: "
                "add it to the one that lacks it"
            )
        wildcards = [position for position, token in enumerate(source_tokens) if token == "*"]
        plain_source = not wildcards and source_tokens[-1] != ">"
        pieces: list[_Piece] = []
        literal = deterministic = True
        for token in tokens:
            try:
                call = _parse(token)
                if call is not None:
                    pieces.append(_build(call, _positions(call, wildcards, source, plain_source), random))
                    literal = False
                    deterministic = deterministic and call.name != "random"
                elif token == ">":
                    pieces.append(partial(_rest, len(source_tokens) - 1))
                    literal = False
                else:
                    pieces.append(partial(_constant, token))
            except _Refusal as refusal:
                raise MappingError(f"destination {destination!r}: {token!r} {refusal}") from None
        return cls(source, destination, deterministic, literal, tuple(source_tokens), tuple(pieces))

    @classmethod
    def compile_for_any(cls, destination: str, *, random: Callable[[int], int] = randrange) -> Mapping:
        """A mapping for messages of any subject, as they come from a whole stream.

        A destination that ends in `>` keeps the subject behind what stands before it. Any other one is the same
        subject for all, since there are no wildcards that it could use. Raises MappingError.
        """
        if destination.endswith(">"):
            return cls.compile(">", destination, random=random)
        try:
            mapping = cls.compile("any", destination, random=random)
        except MappingError as error:
            raise MappingError(
                f"{error} (the source is a whole stream, which has no wildcards to use: set `filter` to a pattern)"
            ) from None
        return replace(mapping, source=">", _source_tokens=(">",))

    def apply(self, subject: str) -> str:
        """The subject that `subject` maps to.

        Raises MappingError if `subject` doesn't match the source, or if the result is no subject that one can
        publish to.
        """
        tokens = subject.split(".")
        if not matches_tokens(self._source_tokens, tokens):
            raise MappingError(
                f"subject {subject!r} doesn't match the mapping's source {self.source!r}: "
                "apply the mapping only to subjects that match"
            )
        if self.literal:
            return self.destination
        try:
            result = ".".join([piece(tokens) for piece in self._pieces])
        except UnicodeEncodeError as error:
            raise MappingError(f"subject {subject!r} can't be mapped: it has no UTF-8 ({error.reason})") from error
        if not is_valid_subject(result):
            raise MappingError(
                f"subject {subject!r} maps to {result!r} by destination {self.destination!r}, "
                "and that is no valid subject: change the destination, or narrow the source to leave such subjects out"
            )
        return result


class _Refusal(Exception):
    """Why a token of a destination can't be used: the second half of a sentence that starts with the token."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One function with its arguments, as written."""

    name: str
    indexes: tuple[int, ...]
    number: int = 0
    text: str = ""


# --- from text to a call ---------------------------------------------------------------------------------------------


def _split(subject: str, what: str, source: str, destination: str) -> list[str]:
    """The tokens of a source or destination. Only a source is checked for whitespace here: functions may hold it."""
    tokens = subject.split(".")
    where = f"destination {destination!r}" if what == "destination" else f"source {source!r} of {destination!r}"
    if not subject:
        raise MappingError(f"{where} is empty: give it at least one token")
    if "" in tokens:
        raise MappingError(f"{where} has an empty token: remove the dot at its start or end, or one of two in a row")
    if ">" in tokens[:-1]:
        raise MappingError(f"{where} has '>' before its last token: move it to the end")
    if what == "source" and CONTROL.search(subject) is not None:
        raise MappingError(f"{where} holds whitespace or a control character: remove it")
    return tokens


def _parse(token: str) -> _Call | None:
    """The function that a token of a destination calls, or None for a token that is meant as it stands."""
    if token.startswith("$"):
        index = _integer(token[1:])
        # Not a number is not an error: tokens such as $JS are common.
        if index is not None:
            return _Call("wildcard", (index,))
    if len(token) <= 4 or not (token.startswith("{{") and token.endswith("}}")):
        _refuse_control(token)
        return None
    for name, (pattern, parse) in _FUNCTIONS.items():
        found = pattern.search(token)
        if found is not None:
            return parse(name, _COMMA.split(found[1]))
    raise _Refusal(f"is no function that a mapping knows: use one of {', '.join(_FUNCTIONS)}")


def _refuse_control(token: str) -> None:
    control = CONTROL.search(token)
    if control is not None:
        raise _Refusal(f"holds {control[0]!r}, but subjects have no whitespace or control characters: remove it")


def _parse_wildcard(name: str, arguments: list[str]) -> _Call:
    _expect(arguments, 1, 1, "wildcard(INDEX)")
    return _Call(name, (_index(arguments[0]),))


def _parse_partition(name: str, arguments: list[str]) -> _Call:
    number = _int32(arguments[0], "number of partitions", wraps=True)
    return _Call(name, tuple(_index(argument) for argument in arguments[1:]), number)


def _parse_index_and_number(name: str, arguments: list[str]) -> _Call:
    _expect(arguments, 2, 2, f"{name}(INDEX, NUMBER)")
    return _Call(name, (_index(arguments[0]),), _int32(arguments[1], "number", wraps=False))


def _parse_split(name: str, arguments: list[str]) -> _Call:
    _expect(arguments, 2, 2, "split(INDEX, SEPARATOR), where the separator is no comma")
    if " " in arguments[1]:
        raise _Refusal("has a space in its separator: subjects have none; remove it")
    return _Call(name, (_index(arguments[0]),), text=arguments[1])


def _parse_random(name: str, arguments: list[str]) -> _Call:
    _expect(arguments, 1, 1, "random(NUMBER)")
    return _Call(name, (), _int32(arguments[0], "number", wraps=True))


def _expect(arguments: list[str], least: int, most: int, usage: str) -> None:
    count = 0 if arguments == [""] else len(arguments)
    if count < least:
        raise _Refusal(f"has not enough arguments: write {usage}")
    if count > most:
        raise _Refusal(f"has too many arguments: write {usage}")


def _index(text: str) -> int:
    index = _integer(text.strip(" "))
    if index is None:
        raise _Refusal(f"has the invalid argument {text!r}: give a wildcard's number, 1 for the source's first")
    return index


def _int32(text: str, what: str, *, wraps: bool) -> int:
    number = _integer(text.strip(" "))
    # The server parses some numbers as 64 bits and cuts them to 32, with a check at the upper end only.
    if number is None or number > _MAX_INT32 or (number < _MIN_INT32 and not wraps):
        raise _Refusal(f"has the invalid argument {text!r}: give the {what} as an integer of at most {_MAX_INT32}")
    return (number - _MIN_INT32) % 2**32 + _MIN_INT32


def _integer(text: str) -> int | None:
    """Go's `strconv.Atoi`: a sign and ASCII digits, no spaces or underscores, 64 bits."""
    if _INTEGER.fullmatch(text) is None:
        return None
    digits = text.lstrip("+-").lstrip("0")
    if len(digits) > len(str(2**63)):  # int() itself raises for thousands of digits
        return None
    number = int(digits or "0") * (-1 if text[0] == "-" else 1)
    return number if -(2**63) <= number < 2**63 else None


def _positions(call: _Call, wildcards: list[int], source: str, plain_source: bool) -> list[int]:
    """Turn wildcard numbers into positions in the subject."""
    if plain_source:
        if call.name in ("random", "partition"):
            return []
        raise _Refusal(f"needs a wildcard, but the source {source!r} has none: put '*' into the source")
    for index in call.indexes:
        if index > len(wildcards):
            raise _Refusal(
                f"has the wildcard index {index} out of range, the source {source!r} has {len(wildcards)} '*': "
                "use a smaller index, or put another '*' into the source"
            )
    return [wildcards[index - 1] if index >= 1 else 0 for index in call.indexes]


# --- from a call to a piece of the result -----------------------------------------------------------------------------


def _constant(token: str, tokens: _Tokens) -> str:
    return token


def _rest(first: int, tokens: _Tokens) -> str:
    return ".".join(tokens[first:])


def _from_token(position: int, change: Callable[[str], str], tokens: _Tokens) -> str:
    return change(tokens[position])


def _partition(positions: list[int], count: int, tokens: _Tokens) -> str:
    """The bucket of FNV-1a, 32 bits, over the tokens with nothing between them, or over the whole subject."""
    if count == 0:
        return "0"
    key = "".join([tokens[position] for position in positions]) if positions else ".".join(tokens)
    digest = _FNV32_OFFSET
    for octet in key.encode("utf-8", "surrogateescape"):
        digest = (digest ^ octet) * _FNV32_PRIME & 0xFFFFFFFF
    # The server takes a negative count for an unsigned one.
    return str(digest % (count % 2**32))


def _random(random: Callable[[int], int], count: int, tokens: _Tokens) -> str:
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
    # The short slice, if there is one, comes first.
    first = len(token) % size
    slices = [token[start : start + size] for start in range(first, len(token), size)]
    return ".".join([token[:first], *slices] if first else slices)


def _split_at(separator: str, token: str) -> str:
    """Split at each separator. Empty parts go, except that two separators at the start leave one empty token."""
    parts = token.split(separator) if separator else list(token)
    return "".join(
        part if number == 0 or (number == 1 and not parts[0]) else f".{part}"
        for number, part in enumerate(parts)
        if part
    )


def _sized(size: int, cut: Callable[[int, str], str], token: str) -> str:
    """Cut a token at a number of bytes; one that is not longer than that stays whole."""
    if token.isascii():
        return cut(size, token) if size < len(token) else token
    # One character a byte, so that cutting characters cuts bytes.
    octets = token.encode("utf-8", "surrogateescape").decode("latin-1")
    if size >= len(octets):
        return token
    return cut(size, octets).encode("latin-1").decode("utf-8", "surrogateescape")


def _build(call: _Call, positions: list[int], random: Callable[[int], int]) -> _Piece:
    """The function that computes a call's part of the result."""
    if call.name == "random":
        return partial(_random, random, call.number)
    if call.name == "partition":
        return partial(_partition, positions, call.number)
    if call.name == "split":
        return partial(_from_token, positions[0], partial(_split_at, call.text))
    # The server leaves a token whole when the size is 0 or less.
    if call.name == "wildcard" or call.number <= 0:
        return itemgetter(positions[0])
    return partial(_from_token, positions[0], partial(_sized, call.number, _CUTS[call.name]))


_CUTS: dict[str, Callable[[int, str], str]] = {
    "splitFromLeft": _split_from_left,
    "splitFromRight": _split_from_right,
    "sliceFromLeft": _slice_from_left,
    "sliceFromRight": _slice_from_right,
    "right": _right,
    "left": _left,
}


def _pattern(name: str) -> re.Pattern[str]:
    """How a function is written: the first letter of each of its words in either case, whitespace around its name."""
    words = re.sub("^[a-z]|[A-Z]", lambda letter: f"[{letter[0].lower()}{letter[0].upper()}]", name)
    space = r"[\t\n\f\r ]*"
    return re.compile(rf"\{{\{{{space}{words}{space}\((.*)\){space}\}}\}}")


# The order matters: the first that is found anywhere in a token is the one.
_FUNCTIONS: dict[str, tuple[re.Pattern[str], Callable[[str, list[str]], _Call]]] = {
    "wildcard": (_pattern("wildcard"), _parse_wildcard),
    "partition": (_pattern("partition"), _parse_partition),
    **{name: (_pattern(name), _parse_index_and_number) for name in _CUTS},
    "split": (_pattern("split"), _parse_split),
    "random": (_pattern("random"), _parse_random),
}
