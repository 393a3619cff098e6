"""Assign keys to members by weighted rendezvous hashing.

Each member has a score for the key, -w / ln(h), where w is its weight and h a number between 0 and 1 that is derived
from a hash of its name and the key. The highest score wins, so a member gets keys in proportion to its weight. If a
member is removed, only its own keys move. If a member is added or its weight grows, keys move only to it; if its weight
shrinks, keys move only away from it.

The hash is BLAKE2b of the input below, so the result is the same in every process, machine and version.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import log
from typing import Generic, TypeVar

from router_trio.errors import EvaluationError
from router_trio.expressions.values import Duration, Timestamp, Uint, Value, kind_name

MAX_REMEMBERED = 8_192
"""Number of keys that are remembered with their member."""
LONGEST_REMEMBERED = 128
"""Bytes of the longest key that is remembered."""

M = TypeVar("M")


def key_of(value: Value) -> bytes:
    """Return the bytes that represent the value of a key: a letter for its type, and the value.

    Numbers that are equal in CEL have the same bytes: 7, 7u and 7.0. Raises EvaluationError for lists, maps and types.
    """
    kind = value.__class__
    if kind is str:
        return b"s" + value.encode("utf-8", "surrogatepass")  # type: ignore[no-any-return]
    if kind is int or kind is Uint:
        return b"i%d" % value
    if kind is float:
        return b"i%d" % int(value) if value.is_integer() else b"d" + repr(value).encode()
    if kind is bool:
        return b"t" if value else b"f"
    if value is None:
        return b"n"
    if kind is bytes:
        return b"b" + value  # type: ignore[no-any-return]
    if kind is Timestamp:
        return b"T%d" % value.ns
    if kind is Duration:
        return b"D%d" % value.ns
    raise EvaluationError(f"a {kind_name(value)} can't be a key; take a string, a number or a bool")


class Rendezvous(Generic[M]):
    """Members, each with a name and a weight."""

    __slots__ = ("_known", "_members")

    def __init__(self, members: Sequence[tuple[M, bytes, int]]) -> None:
        self._members = tuple((member, blake2b(_part(name), digest_size=8), weight) for member, name, weight in members)
        self._known: dict[bytes, M] = {}

    def owner_of(self, key: bytes) -> M:
        """Return the member to which a key belongs."""
        known = self._known
        if key in known:
            return known[key]
        owner, highest = self._members[0][0], 0.0
        for member, named, weight in self._members:
            hashed = named.copy()
            hashed.update(key)
            # 52 bits, so that a float can hold the added half, which keeps the number from being 0 or 1.
            drawn = ((int.from_bytes(hashed.digest(), "big") >> 12) + 0.5) / 2.0**52
            score = -weight / log(drawn)
            if score > highest:
                owner, highest = member, score
        if len(key) <= LONGEST_REMEMBERED:
            if len(known) >= MAX_REMEMBERED:
                known.clear()
            known[key] = owner
        return owner


def _part(name: bytes) -> bytes:
    """Return a name prefixed with its length, so that no two pairs of name and key give the same input."""
    return b"%d:%b" % (len(name), name)
