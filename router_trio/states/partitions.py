"""The partitions of a route that several processes share, as one of them sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Partitions:
    """The partitions of a route as seen by one process.

    There are `count` of them, numbered from 0. `led` are those that this process leads: it has their lead, or they are
    its share, no other process has their lead, and nothing is there to deliver. `wanted` are the others of its share.
    `lag` is the number of messages, for each one in `led`, that are not settled; a partition is missing as long as that
    is not known. `member` is the id of this process, and `members` are those of all processes, none before this one has
    joined. `owners` is the member whose share each partition is; empty before that. It is computed by this process, so
    it may be out of date for some seconds. `uncopied` is the number of messages that the stream of the partitions does
    not have yet, if it sources another one.
    """

    count: int
    led: tuple[int, ...]
    wanted: tuple[int, ...]
    lag: Mapping[int, int]
    member: str
    members: frozenset[str]
    owners: tuple[str, ...]
    uncopied: int = 0
