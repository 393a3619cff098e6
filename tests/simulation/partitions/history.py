"""The history of a run, as data for the judges: messages, handler calls, processes, and who led what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True, slots=True)
class Published:
    """A message of the source, whose order is that of the numbers. `key` determines its `partition`."""

    number: int
    key: str
    partition: int
    at: float


@dataclass(slots=True)
class Copy:
    """A message as a destination stored it, which has lost it again at `lost_at`."""

    number: int
    at: float
    lost_at: float = inf


@dataclass(slots=True)
class Call:
    """A call of the handler, by a process. It has not ended as long as `ended` is infinite.

    `began` is when the handler has recorded it. `called` is the time when the router may have made it, if that is
    another one: a process can be stopped in between.
    """

    process: int
    key: str
    number: int
    began: float
    ended: float = inf
    called: float | None = None


@dataclass(frozen=True, slots=True)
class Spell:
    """A time in which calls of a process may overlap with those of others: it was suspended, or cut off.

    `process` is None for all. A suspended process finishes what it has begun, and begins nothing that it has lost.
    """

    began: float
    ended: float
    process: int | None = None
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """An event after which partitions are led by other processes, or may be. `moves`: some are moved by hand.

    `forged`: members that do not exist were announced; others stand in for them, now and then after a while.
    `led_within` and `fair_within` are the seconds after it in which each partition is led, and shares are fair.
    """

    at: float
    what: str
    led_within: float = 10.0
    fair_within: float = 10.0
    forged: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """The leads at one time: of the processes that can act, and the partitions that have something to do.

    Processes that are `apart` can act, but the server hears nothing from them, or they hear nothing from it.
    """

    at: float
    led: Mapping[int, frozenset[int]]
    busy: frozenset[int]
    moved: bool = False
    apart: frozenset[int] = frozenset()

    @property
    def members(self) -> frozenset[int]:
        """The processes that are there for each other."""
        return frozenset(self.led) - self.apart


@dataclass(slots=True)
class History:
    """A run. `window` is the duplicate window of the destination in seconds.

    `workers` of each process are members of their own. Messages that are `gone` were lost by the stream that alone had
    them. Messages published in one of the times `without_order` may pass each other.
    """

    partitions: int
    window: float
    published: list[Published] = field(default_factory=list)
    stored: list[Copy] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    without_order: list[tuple[float, float]] = field(default_factory=list)
    workers: int = 1
