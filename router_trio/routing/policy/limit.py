"""Rate limits: at most burst + rate x t messages in any time t.

The generic cell rate algorithm (GCRA) needs one number: the time at which the bucket is full again. Time is counted in
whole nanoseconds, multiplied by the messages of the rate, so nothing is rounded and the bound holds exactly. Pure: the
caller passes the time.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from math import ceil, inf

MOST_VALUES = 131_072
"""Values with their own bucket. Further values share one bucket, so their messages wait longer."""

LONGEST_VALUE = 32
"""Bytes of the longest value that is kept as it is; a longer one is kept as a hash."""

_NANOSECONDS = 1_000_000_000


class Limit:
    """A token bucket: `messages` in `seconds`, and `burst` of them at once."""

    __slots__ = ("_full_at", "_most", "_scale", "_step")

    def __init__(self, messages: int, seconds: int, burst: int) -> None:
        self._scale = messages
        self._step = seconds * _NANOSECONDS
        self._most = burst * self._step
        self._full_at = 0

    def go_on(self, before: Limit, now: float) -> None:
        """Continue another limit of the same messages: as many tokens are missing as there, at most all."""
        missing = max(0, before._full_at - before._ticks(now))
        self._full_at = self._ticks(now) + min(_rounded_up(missing * self._step, before._step), self._most)

    def available(self, now: float) -> int:
        """Return the number of messages that may be sent at `now`, if none is sent before."""
        return (self._most - max(0, self._full_at - self._ticks(now))) // self._step

    def charge(self, count: int, now: float) -> None:
        """Take `count` tokens, at most as many as are `available`."""
        self._full_at = max(self._full_at, self._ticks(now)) + count * self._step

    def give_back(self, count: int) -> None:
        """Return `count` unused tokens of the last `charge`."""
        self._full_at -= count * self._step

    def free_at(self, count: int = 1) -> float:
        """Return the time when `count` messages may be sent; infinite if that exceeds the burst."""
        if count * self._step > self._most:
            return inf
        return _seconds(self._full_at - self._most + count * self._step, self._scale)

    def _ticks(self, now: float) -> int:
        return int(now * _NANOSECONDS) * self._scale


class ValueLimits:
    """Token buckets, one for each value, all with the same rate. A bucket that is full again is forgotten.

    At most `most` values have their own bucket at a time; the others share one. So the rate holds for each value, and
    memory is bounded. A value that leaves the shared bucket keeps its state.
    """

    __slots__ = (
        "_full_at",
        "_most",
        "_most_values",
        "_scale",
        "_shared",
        "_step",
        "_stood_still",
        "_stood_until",
        "answered_until",
    )

    def __init__(self, messages: int, seconds: int, burst: int, *, most: int = MOST_VALUES) -> None:
        self._scale = messages
        self._step = seconds * _NANOSECONDS
        self._most = burst * self._step
        self._most_values = most
        # Ordered by last use. In a plain dict, finding the first entry becomes slow once earlier ones were deleted.
        self._full_at: OrderedDict[bytes, int] = OrderedDict()
        self._shared = 0
        self.answered_until: float = inf
        """The time before which all that was sent has been answered, so that no clock is stopped for it any more.

        Infinite if the clock is never stopped.
        """
        self._stood_still = 0
        self._stood_until = -inf

    def go_on(self, before: ValueLimits, now: float) -> None:
        """Continue other limits of the same values: of each as many tokens are missing as there, at most all."""
        ticks = int(now * _NANOSECONDS) * self._scale
        ticks_before = int(now * _NANOSECONDS) * before._scale - before._stood_still

        def continued(full_at: int) -> int:
            return ticks + min(_rounded_up((full_at - ticks_before) * self._step, before._step), self._most)

        # Full buckets too: less is available of them if the clock of the last second was stopped, which shows later.
        for value, full_at in before._full_at.items():
            self._full_at[value] = continued(full_at)
        self._shared = continued(before._shared)

    def __len__(self) -> int:
        """Return the number of values with their own bucket."""
        return len(self._full_at)

    def charge(self, value: bytes, now: float) -> float:
        """Take a token for a message of a value and return 0; if there is none, return when there will be one."""
        ticks = int(now * _NANOSECONDS) * self._scale - self._stood_still
        known, value = self._full_at, kept_value(value)
        full_at = known.pop(value, None)
        own = full_at is not None
        if full_at is None:
            self._forget(now)
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

    def stand_still(self, since: float, now: float) -> None:
        """Stop the clock of all buckets from `since` until `now`: what was sent meanwhile reaches the server only now.

        `since` is not before `answered_until`: buckets that were full by then may be forgotten.
        Time for which the clock has been stopped before is not counted again. So it never falls behind by more than
        the time that passes, however often this is called.
        """
        since = max(since, self._stood_until)
        if since < now:
            self._stood_still += int((now - since) * _NANOSECONDS) * self._scale
            self._stood_until = now

    def _forget(self, now: float) -> None:
        """Forget values whose buckets are full, and stay so if the clock is stopped, the least recently used first.

        Each call forgets up to two values, more than the one that may be added, so that full buckets do not pile up.
        """
        known = self._full_at
        ticks = int(min(now, self.answered_until) * _NANOSECONDS) * self._scale - self._stood_still
        for _ in range(2):
            value = next(iter(known), None)
            if value is None or known[value] > ticks:
                return
            del known[value]


def kept_value(value: bytes) -> bytes:
    """Return a value as it is kept: a long one as a hash."""
    return value if len(value) <= LONGEST_VALUE else blake2b(value, digest_size=LONGEST_VALUE - 1).digest()


def _rounded_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _seconds(ticks: int, scale: int) -> float:
    """Return `ticks` in seconds, rounded up so that at least that many ticks have passed by then."""
    nanoseconds = _rounded_up(ticks, scale) + 1
    seconds = nanoseconds / _NANOSECONDS
    # A float of seconds has fewer digits than its nanoseconds once the clock runs for months.
    return seconds if int(seconds * _NANOSECONDS) >= nanoseconds - 1 else ceil(seconds * 1e6 + 1) / 1e6
