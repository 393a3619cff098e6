"""Subject mappings: from the subject that a message came on to the subject that it goes to.

Syntax and results are those of nats-server 2.15's account mappings (`server/subject_transform.go`, not strict), down
to its oddities, so that a mapping can move between a server's configuration and a route without change:

- A token is a function only as a whole: it starts with `{{` and ends with `}}`, or is `$` and a number. In `eu-$1`
  or `eu-{{wildcard(1)}}` there is no function; such a token is sent as it stands.
- A token holds one function. Of several, the first in the order of `calls.FUNCTIONS` wins, and all text around it is
  lost.
- Lengths and positions count bytes of UTF-8. A character cut in two becomes surrogate escapes.
- A wildcard index below 1 means the subject's first token.
- `partition` without indexes hashes the whole subject. So does every `partition` when the source has no wildcards.

Beyond the server, a destination without any placeholder may have a source that ends in `>`: all goes to one subject.

Where the server accepts what can only harm, this module refuses: an empty destination (which crashes the server),
control characters, and a result that is no valid subject, such as the empty token that `split` makes of `--a` (a
message that the server drops without a word).
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

_MAKE_SEVERAL = frozenset({"split", "splitFromLeft", "splitFromRight", "sliceFromLeft", "sliceFromRight"})
"""Functions that may make several tokens of one."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A compiled mapping. Make one with `Mapping.compile`; it never changes and keeps no state."""

    source: str
    destination: str
    deterministic: bool
    """False when the destination uses `random`: then results must not be cached."""
    literal: bool
    """True when the destination holds no placeholder, so that every subject maps to the destination itself."""
    literal_start: tuple[str, ...]
    """The tokens at the start of the destination that stand there as they are, before the first placeholder."""
    pattern: str
    """The pattern that every result matches: the destination with a wildcard for each placeholder."""
    _source_tokens: tuple[str, ...] = field(repr=False, compare=False)
    _pieces: tuple[Piece, ...] = field(repr=False, compare=False)
    _others: tuple[Mapping, ...] = field(default=(), repr=False)
    """For other sources, to the same destination."""

    @classmethod
    def compile(cls, source: str, destination: str, *, random: Callable[[int], int] = randrange) -> Mapping:
        """Check a mapping and prepare it for use.

        `source` is a pattern, `destination` a subject that may hold functions. `random(n)` gives an integer of at
        least 0 and below n, for the function of that name.

        Wildcards of the source need not all be used. A `>` must end both or neither, unless the destination is literal.

        Raises MappingError, naming the destination, the function and the cure.
        """
        source_tokens = _split(source, "source", source, destination)
        tokens = _split(destination, "destination", source, destination)
        if "*" in tokens:
            cure = "say which of the source's tokens belongs there, as in {{wildcard(1)}}"
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
        if source_tokens[-1] == ">" and tokens[-1] != ">" and not literal:
            raise _one_sided(source, destination)
        pattern = ".".join(shape[: shape.index(">") + 1] if ">" in shape else shape)
        starts = tuple(literal_start)
        return cls(source, destination, deterministic, literal, starts, pattern, tuple(source_tokens), tuple(pieces))

    @classmethod
    def compile_each(
        cls, sources: Sequence[str], destination: str, *, random: Callable[[int], int] = randrange
    ) -> Mapping:
        """A mapping for messages that match one of several sources, as `compile` has it for each of them.

        Of several that match, the first one counts. Raises MappingError.
        """
        first, *others = [cls.compile(source, destination, random=random) for source in sources]
        return replace(first, source=", ".join(sources), _others=tuple(others)) if others else first

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
            told = f"subject {quoted(subject)} can't be mapped: it can't be encoded as UTF-8 ({error.reason})"
            raise MappingError(told) from error
        if not is_valid_subject(result):
            raise MappingError(
                f"subject {quoted(subject)} maps to {quoted(result)} by destination {quoted(self.destination)}, "
                "which is not a valid subject: change the destination, or narrow the source to leave such subjects out"
            )
        return result


def unused_wildcards(source: str, destination: str) -> list[int]:
    """Return the numbers of the `*` of a source that no function of a valid destination uses, from 1 on."""
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


def _build(call: Call, places: list[int], random: Callable[[int], int]) -> Piece:
    """The function that computes a call's part of the result."""
    if call.name == "random":
        return partial(random_number, random, call.number)
    if call.name == "partition":
        return partial(partition, places, call.number)
    if call.name == "split":
        return partial(from_token, places[0], partial(split_at, call.text))
    # The server leaves a token whole when the size is 0 or less.
    if call.name == "wildcard" or call.number <= 0:
        return itemgetter(places[0])
    return partial(from_token, places[0], partial(sized, call.number, CUTS[call.name]))
