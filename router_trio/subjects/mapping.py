"""Subject mappings: from the subject of a received message to the subject of its copy.

Syntax and results are those of nats-server 2.15's account mappings (`server/subject_transform.go`, not strict),
including its quirks, so that a mapping can be moved between a server's configuration and a route without change:

- A token is a function only if all of it is: it starts with `{{` and ends with `}}`, or is `$` and a number. `eu-$1`
  and `eu-{{wildcard(1)}}` contain no function and are literal tokens.
- A token has one function. If there are several, the first in the order of `functions.FUNCTIONS` is used, and all text
  around it is ignored.
- Lengths and positions count bytes of UTF-8. A character that is cut in two becomes surrogate escapes.
- A wildcard index below 1 means the subject's first token.
- `partition` without indexes hashes the entire subject. So does every `partition` if the source has no wildcards.

In addition to what the server supports, a destination without placeholders may have a source that ends in `>`: all
messages are sent to one subject. And `key()` is the key of a message from a KV bucket, all tokens of it.

This module refuses mappings that the server accepts but that can only do harm: an empty destination (which crashes the
server), control characters, and a result that is not a valid subject, such as the empty token that `split` makes of
`--a` (the server drops such a message silently).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from operator import itemgetter
from random import randrange

from router_trio.errors import MappingError
from router_trio.errors.quotes import quoted
from router_trio.subjects.functions import (
    CUTS,
    KEY_AT,
    Call,
    Piece,
    Refusal,
    constant,
    from_token,
    parse,
    partition,
    positions,
    random_number,
    rest,
    sized,
    split_at,
)
from router_trio.subjects.patterns import CONTROL, is_valid_subject, matches_tokens

_MAKE_SEVERAL = frozenset({"key", "split", "splitFromLeft", "splitFromRight", "sliceFromLeft", "sliceFromRight"})
"""Functions that may make several tokens from one."""


_KEY: Piece = partial(rest, KEY_AT)


@dataclass(frozen=True, slots=True)
class Mapping:
    """A compiled mapping, immutable and stateless. Create one with `Mapping.compile`."""

    source: str
    destination: str
    deterministic: bool
    """False if the destination uses `random`, so that results must not be cached."""
    literal: bool
    """True if the destination has no placeholder, so that every subject maps to the destination itself."""
    literal_start: tuple[str, ...]
    """The literal tokens at the start of the destination, before the first placeholder."""
    pattern: str
    """The pattern that every result matches: the destination with a wildcard in place of each placeholder."""
    _source_tokens: tuple[str, ...] = field(repr=False, compare=False)
    _pieces: tuple[Piece, ...] = field(repr=False, compare=False)
    _others: tuple[Mapping, ...] = field(default=(), repr=False)
    """Mappings from further sources to the same destination."""

    @classmethod
    def compile(cls, source: str, destination: str, *, random: Callable[[int], int] = randrange) -> Mapping:
        """Check and compile a mapping.

        `source` is a pattern, `destination` a subject that may contain functions. `random(n)` returns an integer from 0
        to n - 1, for the function `random`.

        Not all wildcards of the source need to be used. A `>` must end both or neither, unless the destination is
        literal.

        Raises MappingError with the destination, the function and the cure.
        """
        source_tokens = _split(source, "source", source, destination)
        tokens = _split(destination, "destination", source, destination)
        if "*" in tokens:
            cure = "name the source's token to use there, as in {{wildcard(1)}}"
            if tokens.count("*") <= source_tokens.count("*"):
                numbers = count(1)
                meant = [f"{{{{wildcard({next(numbers)})}}}}" if one == "*" else one for one in tokens]
                cure = f"write {'.'.join(meant)!r}, which has the tokens of the source's wildcards"
            raise MappingError(f"destination {destination!r} has the wildcard '*': {cure}")
        if tokens[-1] == ">" and source_tokens[-1] != ">":
            raise _one_sided(source, destination)
        wildcards = [position for position, token in enumerate(source_tokens) if token == "*"]
        plain_source = not wildcards and source_tokens[-1] != ">"
        pieces: list[Piece] = []
        literal = deterministic = True
        literal_start: list[str] = []
        shape: list[str] = []
        for token in tokens:
            try:
                call = parse(token)
                if call is not None:
                    pieces.append(_build(call, positions(call, wildcards, source, plain_source), random))
                    literal = False
                    deterministic = deterministic and call.name != "random"
                    shape.append(">" if call.name in _MAKE_SEVERAL else "*")
                elif token == ">":
                    pieces.append(partial(rest, len(source_tokens) - 1))
                    literal = False
                    shape.append(">")
                else:
                    pieces.append(partial(constant, token))
                    shape.append(token)
                    if literal:
                        literal_start.append(token)
            except Refusal as refusal:
                raise MappingError(f"destination {destination!r}: {token!r} {refusal}") from None
        takes_rest = tokens[-1] == ">" or any(one is _KEY for one in pieces)
        if source_tokens[-1] == ">" and not takes_rest and not literal:
            raise _one_sided(source, destination)
        pattern = ".".join(shape[: shape.index(">") + 1] if ">" in shape else shape)
        starts = tuple(literal_start)
        used = () if literal else tuple(pieces)
        return cls(source, destination, deterministic, literal, starts, pattern, tuple(source_tokens), used)

    @classmethod
    def compile_each(
        cls, sources: Sequence[str], destination: str, *, random: Callable[[int], int] = randrange
    ) -> Mapping:
        """Compile a mapping for messages that match any of several sources.

        A subject is mapped by the first source that it matches. Raises MappingError, as `compile` does.
        """
        first, *others = [cls.compile(source, destination, random=random) for source in sources]
        return replace(first, source=", ".join(sources), _others=tuple(others)) if others else first

    @classmethod
    def compile_for_any(cls, destination: str, *, random: Callable[[int], int] = randrange) -> Mapping:
        """Compile a mapping for messages with any subject, such as all messages of a stream.

        A destination that ends in `>` puts the tokens before it in front of the subject. Any other destination is the
        same for all messages, because the source has no wildcards that it could use. Raises MappingError.
        """
        if destination.endswith(">"):
            return cls.compile(">", destination, random=random)
        try:
            mapping = cls.compile("any", destination, random=random)
        except MappingError as error:
            raise MappingError(
                f"{error} (the source is an entire stream, which has no wildcards to use: set `filter` to a pattern)"
            ) from None
        return replace(mapping, source=">", _source_tokens=(">",))

    def apply(self, subject: str) -> str:
        """Return the subject that `subject` maps to.

        Raises MappingError if `subject` does not match the source, or if the result is not a valid subject to publish
        to.
        """
        tokens = subject.split(".")
        if not matches_tokens(self._source_tokens, tokens):
            for other in self._others:
                if matches_tokens(other._source_tokens, tokens):
                    return other.apply(subject)
            raise MappingError(
                f"subject {quoted(subject)} doesn't match the mapping's source {quoted(self.source)}: "
                "apply the mapping only to subjects that match"
            )
        if self.literal:
            return self.destination
        try:
            result = ".".join([piece(tokens) for piece in self._pieces])
        except UnicodeEncodeError as error:
            problem = f"subject {quoted(subject)} can't be mapped: it can't be encoded as UTF-8 ({error.reason})"
            raise MappingError(problem) from error
        if not is_valid_subject(result):
            raise MappingError(
                f"subject {quoted(subject)} maps to {quoted(result)} by destination {quoted(self.destination)}, "
                "which is not a valid subject: change the destination, or narrow the source to leave such subjects out"
            )
        return result


def unused_wildcards(source: str, destination: str) -> list[int]:
    """Return the numbers, from 1, of the `*` of a source that no function of a valid destination uses."""
    tokens = source.split(".")
    wildcards = [position for position, token in enumerate(tokens) if token == "*"]
    used: set[int] = set()
    for token in destination.split("."):
        call = parse(token)
        if call is not None:
            used.update(positions(call, wildcards, source, not wildcards and tokens[-1] != ">"))
            if call.name == "partition" and not call.indexes:
                used.update(wildcards)
    return [number for number, position in enumerate(wildcards, 1) if position not in used]


def _one_sided(source: str, destination: str) -> MappingError:
    return MappingError(
        f"destination {destination!r} and source {source!r} must both end in '>', or neither: add it to the one that "
        "lacks it, or send everything to one subject, without placeholders"
    )


def _split(subject: str, what: str, source: str, destination: str) -> list[str]:
    """Split a source or destination into tokens. Whitespace is refused in a source only: functions may contain it."""
    tokens = subject.split(".")
    where = f"destination {destination!r}" if what == "destination" else f"source {source!r} of {destination!r}"
    if not subject:
        raise MappingError(f"{where} is empty: give it at least one token")
    if "" in tokens:
        raise MappingError(f"{where} has an empty token: remove the dot at its start or end, or one of two in a row")
    if ">" in tokens[:-1]:
        raise MappingError(f"{where} has '>' before its last token: move it to the end")
    if what == "source" and CONTROL.search(subject) is not None:
        raise MappingError(f"{where} contains whitespace or a control character: remove it")
    return tokens


def _build(call: Call, places: list[int], random: Callable[[int], int]) -> Piece:
    """Return the function that computes the part of the result for a call."""
    if call.name == "key":
        return _KEY
    if call.name == "random":
        return partial(random_number, random, call.number)
    if call.name == "partition":
        return partial(partition, places, call.number)
    if call.name == "split":
        return partial(from_token, places[0], partial(split_at, call.text))
    # The server does not cut the token if the size is 0 or less.
    if call.name == "wildcard" or call.number <= 0:
        return itemgetter(places[0])
    return partial(from_token, places[0], partial(sized, call.number, CUTS[call.name]))
