"""How many messages may go, and when: at most burst + rate x t of them in any time t.

This is the generic cell rate algorithm (GCRA), which needs one number: the time at which the bucket is full again. Time
is counted in whole nanoseconds, multiplied by the number of messages of the rate: so nothing is ever rounded, and the
bound holds exactly. Pure; the time is given.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from math import ceil, inf

MOST_VALUES = 131_072
"""Values with a bucket of their own. What more there are at a time share one, and so go more slowly."""

LONGEST_VALUE = 32
"""Bytes of a value that is kept as it is; of a longer one a hash."""

_NANOSECONDS = 1_000_000_000


class Limit:
    """A token bucket: `messages` in `seconds`, and `burst` of them at once."""

    __slots__ = ("_full_at", "_most", "_scale", "_step")

    def __init__(self, messages: int, seconds: int, burst: int) -> None:
        self._scale = messages
        self._step = seconds * _NANOSECONDS
        self._most = burst * self._step
        self._full_at = 0

    def available(self, now: float) -> int:
        """Return how many may go at `now`, if none goes before."""
        return (self._most - max(0, self._full_at - self._ticks(now))) // self._step

    def charge(self, count: int, now: float) -> None:
        """Take `count` tokens: no more than `available`."""
        self._full_at = max(self._full_at, self._ticks(now)) + count * self._step

    def give_back(self, count: int) -> None:
        """Return `count` of the tokens that were just taken and not used. None was taken since."""
        self._full_at -= count * self._step

    def free_at(self, count: int = 1) -> float:
        """Return when so many may go. Infinite if that is more than ever go at once."""
        if count * self._step > self._most:
            return inf
        return _seconds(self._full_at - self._most + count * self._step, self._scale)

    def _ticks(self, now: float) -> int:
        return int(now * _NANOSECONDS) * self._scale


class ValueLimits:
    """A bucket for each value, all alike. One that is full again is forgotten.

    Of more than `most` values that have one at a time, the others share a bucket: so the bound holds for each of them,
    and memory has one. A value that leaves the shared bucket takes its state along.
    """

    __slots__ = ("_full_at", "_most", "_most_values", "_scale", "_shared", "_step", "_stood_still")

    def __init__(self, messages: int, seconds: int, burst: int, *, most: int = MOST_VALUES) -> None:
        self._scale = messages
        self._step = seconds * _NANOSECONDS
        self._most = burst * self._step
        self._most_values = most
        # Ordered by when each was used last. The first of a plain dict takes long to find, once others were deleted.
        self._full_at: OrderedDict[bytes, int] = OrderedDict()
        self._shared = 0
        self._stood_still = 0

    def __len__(self) -> int:
        """How many values have a bucket of their own."""
        return len(self._full_at)

    def charge(self, value: bytes, now: float) -> float:
        """Take the token of one message of a value and return 0; without a token, return when there will be one."""
        ticks = int(now * _NANOSECONDS) * self._scale - self._stood_still
        known, value = self._full_at, _kept(value)
        full_at = known.pop(value, None)
        own = full_at is not None
        if full_at is None:
            self._forget(ticks)
            own = len(known) < self._most_values
            full_at = self._shared
        full_at = max(full_at, ticks) + self._step
        if full_at - ticks > self._most:
            full_at -= self._step
            if own:
                known[value] = full_at
            return _seconds(full_at + self._step - self._most + self._stood_still, self._scale)
        if own:
            known[value] = full_at
        else:
            self._shared = full_at
        return 0.0

    def stand_still(self, seconds: float) -> None:
        """Let no time have passed for so long: what went then, and shortly before, gets through only now."""
        self._stood_still += int(seconds * _NANOSECONDS) * self._scale

    def _forget(self, ticks: int) -> None:
        """Forget values whose buckets are full: those that were used longest ago come first.

        Each call forgets more than the one value that may be new, so that what is full does not pile up.
        """
        known = self._full_at
        for _ in range(2):
            value = next(iter(known), None)
            if value is None or known[value] > ticks:
                return
            del known[value]


def _kept(value: bytes) -> bytes:
    return value if len(value) <= LONGEST_VALUE else blake2b(value, digest_size=LONGEST_VALUE - 1).digest()


def _seconds(ticks: int, scale: int) -> float:
    """Return the seconds of so many ticks, rounded up so far that as many ticks have passed then."""
    nanoseconds = -(-ticks // scale) + 1
    seconds = nanoseconds / _NANOSECONDS
    # A float of seconds has fewer digits than its nanoseconds once the clock runs for months.
    return seconds if int(seconds * _NANOSECONDS) >= nanoseconds - 1 else ceil(seconds * 1e6 + 1) / 1e6
