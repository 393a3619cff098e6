"""Divide the partitions of a route among processes: balanced rendezvous hashing. Pure.

Every process computes the shares by itself, from the members that it sees, with the same result in every process,
machine and version. No member gets two partitions more than another, unless some were moved by hand.

Each partition goes to the member with the highest score for it that has room left. The score does not depend on other
members, so few partitions move between members that stay when another one joins or leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from hashlib import shake_128
from types import MappingProxyType

NONE_MOVED: Mapping[int, str] = MappingProxyType({})


def owners(count: int, members: Collection[str], moved: Mapping[int, str] = NONE_MOVED) -> tuple[str, ...]:
    """Return the member of each of `count` partitions. At least one member has to be given.

    `moved` has partitions that were moved to a member by hand: it keeps them while it exists, and gets fewer others.
    """
    kept = {number: member for number, member in moved.items() if 0 <= number < count and member in members}
    room, extra = _room(count, members, kept)
    scores = {member: _scores(member, count) for member in sorted(members)}
    found: list[str] = []
    for number in range(count):
        owner = kept.get(number)
        if owner is None:
            least = 0 if extra else 1
            _, owner = max((own[number], member) for member, own in scores.items() if room[member] >= least)
            extra -= room[owner] == 0
            room[owner] -= 1
        found.append(owner)
    return tuple(found)


def _room(count: int, members: Collection[str], kept: Mapping[int, str]) -> tuple[dict[str, int], int]:
    """Return how many further partitions each member gets, and how many of those with no room below 0 get one more."""
    room = dict.fromkeys(members, 0)
    for member in kept.values():
        room[member] -= 1
    left = count - len(kept)
    # Fill the members to the same level, from the one that has the fewest.
    level = filled = 0
    while (more := sum(max(0, level + 1 + one) for one in room.values())) <= left:
        level, filled = level + 1, more
    return {member: level + one for member, one in room.items()}, left - filled


def _scores(member: str, count: int) -> tuple[int, ...]:
    """Return the score of a member for each partition. Those of the first partitions do not depend on `count`."""
    return struct.unpack(f">{count}Q", shake_128(member.encode()).digest(8 * count))
