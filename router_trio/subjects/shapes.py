"""Reason about whole sets of subjects: whether patterns overlap, and which subjects a mapping can produce.

A shape is the tokens of a pattern. It stands for all subjects that match it, and is at least as wide as what it is said
to be: where a token is computed, any token will do. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.subjects.functions import Refusal, parse, positions

Shape = tuple[str, ...]


def meet(ours: Shape, theirs: Shape) -> Shape | None:
    """Return the shape of the subjects that match both, None if there are none."""
    both: list[str] = []
    for left, right in zip(ours, theirs, strict=False):
        # ">" needs one token at least, and here the other side has one.
        if left == ">":
            return (*both, *theirs[len(both) :])
        if right == ">":
            return (*both, *ours[len(both) :])
        if left != right and left != "*" and right != "*":
            return None
        both.append(right if left == "*" else left)
    return tuple(both) if len(ours) == len(theirs) else None


class Patterns:
    """Numbered patterns, among which those that meet a shape are found without a look at the others."""

    __slots__ = ("_below", "_here", "looked_at")

    def __init__(self) -> None:
        self.looked_at: int = 0
        """Tokens that `meeting` has compared so far: what its answers have cost."""
        self._below: dict[str, Patterns] = {}
        self._here: set[int] = set()

    def add(self, pattern: Shape, number: int) -> None:
        """Add a pattern; several may have one number."""
        at = self
        for token in pattern:
            at = at._below.setdefault(token, Patterns())
        at._here.add(number)

    def meeting(self, shape: Shape) -> set[int]:
        """Return the numbers of the patterns that some subject of this shape matches."""
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
        """Return what is below a token that may be the one given: ">" is not among them."""
        if token == "*":
            return [below for one, below in self._below.items() if one != ">"]
        return [self._below[one] for one in {token, "*"} if one in self._below]

    def _collect(self, found: set[int]) -> None:
        found |= self._here
        for below in self._below.values():
            below._collect(found)


def mapped(source: str, destination: str, shape: Shape) -> Shape:
    """Return the shape of what subjects become that match `source` and have this shape.

    The mapping must be one that `Mapping` compiles, and the shape one of what matches the source.
    """
    found: list[str] = []
    for token in _mapped(source.split("."), destination, shape):
        found.append(token)
        if token == ">":  # what may be several tokens hides what is behind it
            break
    return tuple(found)


def example(shape: Shape) -> str:
    """Return one subject of this shape."""
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
        elif call.name == "wildcard":
            yield shape[places[0]] if places[0] < len(shape) else "*"
        else:
            yield ">" if call.name.startswith("split") or call.name.startswith("slice") else "*"
