"""Reason about sets of subjects: whether patterns overlap, and which subjects a mapping can produce.

A shape is the tokens of a pattern, and stands for all subjects that match it. The shape of a mapping's results may be
wider than the exact set: for a computed token it allows any token. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.subjects.functions import KEY_AT, Refusal, parse, positions

Shape = tuple[str, ...]


def meet(ours: Shape, theirs: Shape) -> Shape | None:
    """Return the shape of the subjects that match both shapes, None if there are none."""
    both: list[str] = []
    for left, right in zip(ours, theirs, strict=False):
        # ">" needs at least one token, and the other side has one here.
        if left == ">":
            return (*both, *theirs[len(both) :])
        if right == ">":
            return (*both, *ours[len(both) :])
        if left != right and left != "*" and right != "*":
            return None
        both.append(right if left == "*" else left)
    return tuple(both) if len(ours) == len(theirs) else None


class Patterns:
    """A set of numbered patterns (a trie), in which those that overlap a shape are found without comparing all."""

    __slots__ = ("_below", "_here", "looked_at")

    def __init__(self) -> None:
        self.looked_at: int = 0
        """The number of tokens that `meeting` has compared so far."""
        self._below: dict[str, Patterns] = {}
        self._here: set[int] = set()

    def add(self, pattern: Shape, number: int) -> None:
        """Add a pattern. Several patterns may have the same number."""
        at = self
        for token in pattern:
            at = at._below.setdefault(token, Patterns())
        at._here.add(number)

    def meeting(self, shape: Shape) -> set[int]:
        """Return the numbers of the patterns that overlap a shape."""
        found: set[int] = set()
        at = [self]
        for token in shape:
            if token == ">":
                for below in [one for node in at for one in node._below.values()]:
                    below._collect(found)
                self.looked_at += len(found)
                return found
            for node in at:
                if ">" in node._below:
                    found |= node._below[">"]._here
            at = [below for node in at for below in node._matching(token)]
            self.looked_at += len(at) + 1
        return found.union(*(node._here for node in at))

    def _matching(self, token: str) -> list[Patterns]:
        """Return the subtrees whose token may equal `token`, except for that of `>`."""
        if token == "*":
            return [below for one, below in self._below.items() if one != ">"]
        return [self._below[one] for one in {token, "*"} if one in self._below]

    def _collect(self, found: set[int]) -> None:
        found |= self._here
        for below in self._below.values():
            below._collect(found)


def mapped(source: str, destination: str, shape: Shape) -> Shape:
    """Return the shape of the subjects that a mapping makes from subjects of `shape`.

    The mapping must be one that `Mapping` compiles, and subjects of `shape` must match its source.
    """
    found: list[str] = []
    for token in _mapped(source.split("."), destination, shape):
        found.append(token)
        if token == ">":  # several tokens are possible here, so the positions of later tokens are unknown
            break
    return tuple(found)


def example(shape: Shape) -> str:
    """Return a subject that matches a shape."""
    return ".".join("x" if token in ("*", ">") else token for token in shape)


def _mapped(source: list[str], destination: str, shape: Shape) -> Iterator[str]:
    wildcards = [place for place, token in enumerate(source) if token == "*"]
    for token in destination.split("."):
        if token == ">":
            yield from shape[len(source) - 1 :]
            continue
        try:
            call = parse(token)
            places = [] if call is None else positions(call, wildcards, "", not wildcards and source[-1] != ">")
        except Refusal:
            yield ">"
            continue
        if call is None:
            yield token
        elif call.name == "key":
            yield from shape[KEY_AT:]
        elif call.name == "wildcard":
            yield shape[places[0]] if places[0] < len(shape) else "*"
        else:
            yield ">" if call.name.startswith("split") or call.name.startswith("slice") else "*"
