"""Partitions of a stream: each message has the number of its partition as the first token of its subject.

The subject transform of a stream puts the token there, with the function `partition` of nats-server. Messages with the
same tokens at given wildcards of a pattern have the same partition, so a process that reads a partition alone keeps
their order. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from router_trio.errors import MappingError
from router_trio.errors.quotes import quoted
from router_trio.subjects.functions import Refusal, parse
from router_trio.subjects.mapping import Mapping
from router_trio.subjects.patterns import covers, matches, overlaps

EVERYTHING = ">"
"""The pattern of a stream that is read without a filter."""


@dataclass(frozen=True, slots=True)
class Partitioning:
    """The partitions, numbered from 0, of the messages whose subjects match any of `patterns`.

    `by` has the numbers, from 1, of the wildcards of each pattern whose tokens determine the partition; none for the
    entire subject. Raises MappingError if a pattern has fewer wildcards.
    """

    count: int
    by: tuple[int, ...] = ()
    patterns: tuple[str, ...] = (EVERYTHING,)
    _mappings: tuple[Mapping, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mappings = tuple(Mapping.compile(source, to) for source, to in self.transforms)
        object.__setattr__(self, "_mappings", mappings)

    @property
    def transforms(self) -> tuple[tuple[str, str], ...]:
        """The source and the destination of each subject transform that puts the token there."""
        return tuple((pattern, self._with_token(pattern)) for pattern in self.patterns)

    def _with_token(self, pattern: str) -> str:
        numbers = "".join(f",{number}" for number in self.by)
        return ".".join([f"{{{{partition({self.count}{numbers})}}}}", *_unchanged(pattern)])

    def filters(self, partition: int) -> tuple[str, ...]:
        """Return the filters of a consumer that gets one partition."""
        return tuple(f"{partition}.{pattern}" for pattern in self.patterns)

    def partition_of(self, subject: str) -> int:
        """Return the partition of a subject without its token, as the server computes it.

        Raises MappingError if it matches none of the patterns.
        """
        for pattern, mapping in zip(self.patterns, self._mappings, strict=True):
            if matches(pattern, subject):
                return int(mapping.apply(subject).split(".", 1)[0])
        known = ", ".join(self.patterns)
        raise MappingError(f"subject {quoted(subject)} matches none of the patterns that are partitioned: {known}")

    def key_of(self) -> Callable[[bytes], bytes] | None:
        """Return a function that returns the key of a subject: the tokens that determine the partition.

        Return None if the entire subject does. A subject that matches none of the patterns is its own key. The function
        does not raise.
        """
        if not self.by:
            return None
        if len(self.patterns) == 1:
            return partial(_key, self._in_order(self.patterns[0]))
        return self._key_of_several

    def _key_of_several(self, subject: bytes) -> bytes:
        text = subject.decode("utf-8", "replace")
        for pattern in self.patterns:
            if matches(pattern, text):
                return _key(self._in_order(pattern), subject)
        return subject

    def _in_order(self, pattern: str) -> tuple[int, ...]:
        """Return the places of the tokens that determine the partition, in the order of `by`."""
        wildcards = _wildcards(pattern)
        return tuple(wildcards[number - 1] for number in self.by)

    def difference(self, found: Partitioning) -> str | None:
        """Return how the partitions that a stream has differ from these; None if their messages have the same ones."""
        if self.count != found.count:
            return f"it has {_counted(found.count)}, the route {_counted(self.count)}"
        if self.by != found.by:
            return f"its partitions are made of {_named(found.by)}, those of the route of {_named(self.by)}"
        if set(self.patterns) != set(found.patterns):
            theirs, ours = (", ".join(one.patterns) for one in (found, self))
            return f"it partitions {theirs}, and the route reads {ours}"
        return None

    def disorder(self, found: Partitioning) -> str | None:
        """Return why the partitions that a stream has do not keep the order of these, as text; None if they do.

        They keep it if messages with the same key have the same partition, whatever else determines it.
        """
        if self.count != found.count:
            return f"it has {_counted(found.count)}, the route {_counted(self.count)}"
        for ours in self.patterns:
            if not any(covers(theirs, ours) for theirs in found.patterns):
                return f"it partitions {', '.join(found.patterns)}, and the route reads {ours}"
            if not self.by:
                continue
            tokens = ours.split(".")
            fixed = {place for place, token in enumerate(tokens) if token not in ("*", ">")}
            fixed |= _places(ours, self.by)
            for theirs in found.patterns:
                if overlaps(theirs, ours) and not (found.by and _places(theirs, found.by) <= fixed):
                    made_of = _named(found.by)
                    return f"its partitions are made of {made_of} of {theirs}, those of the route of {_named(self.by)}"
        return None


def read_transforms(transforms: Iterable[tuple[str, str]]) -> Partitioning | None:
    """Return the partitions that subject transforms make; None if they do anything else, or differ from each other."""
    found = [_read(source, destination) for source, destination in transforms]
    first = found[0] if found else None
    if first is None or any(one is None or one[:2] != first[:2] for one in found):
        return None
    count, by, _ = first
    try:
        return Partitioning(count, by, tuple(one[2] for one in found if one is not None))
    except MappingError:
        return None  # a wildcard that the source does not have


def _read(source: str, destination: str) -> tuple[int, tuple[int, ...], str] | None:
    """Return the count, the wildcards and the pattern of a transform that only adds the token; else None."""
    source = source or EVERYTHING
    first, *others = destination.split(".")
    try:
        call = parse(first)
        same = [_plain(one) for one in others] == [_plain(one) for one in _unchanged(source)]
    except Refusal:
        return None
    if call is None or call.name != "partition" or call.number < 1 or not same:
        return None
    return call.number, call.indexes, source


def _key(places: Sequence[int], subject: bytes) -> bytes:
    """Return the tokens of a subject at these places, in that order; the subject if it does not have them."""
    tokens = subject.split(b".")
    try:
        return b".".join([tokens[place] for place in places])
    except IndexError:
        return subject


def _places(pattern: str, by: Sequence[int]) -> set[int]:
    """Return the places of wildcards, by their numbers."""
    wildcards = _wildcards(pattern)
    return {wildcards[number - 1] for number in by}


def _wildcards(pattern: str) -> list[int]:
    return [place for place, token in enumerate(pattern.split(".")) if token == "*"]


def _unchanged(pattern: str) -> Sequence[str]:
    """Return the tokens of a destination that leaves the subject as it is."""
    tokens, number = pattern.split("."), 0
    for place, token in enumerate(tokens):
        if token == "*":
            number += 1
            tokens[place] = f"{{{{wildcard({number})}}}}"
    return tokens


def _plain(token: str) -> object:
    """Return the same value for each way to write a token: `$1` and `{{wildcard(1)}}` are the same."""
    return parse(token) or token


def _counted(partitions: int) -> str:
    return f"{partitions} partition{'s' if partitions != 1 else ''}"


def _named(by: tuple[int, ...]) -> str:
    if not by:
        return "the entire subject"
    return f"wildcard{'s' if len(by) > 1 else ''} {', '.join(map(str, by))}"
