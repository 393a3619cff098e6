"""Values in states: what pages show and reports send. Not compiled, so that they can be copied and pickled.

An instance of a dataclass that mypyc compiles can't be unpickled if it is frozen, and `tests/unit/test_compiled.py`
finds other differences: so no compiled module defines one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last failure of a message in a route. `at` is in seconds since 1970.

    `subject` is None if messages failed together, `sequence` is None unless they are from a stream. `place` is where
    the handler raised. `detail` adds to the reason, such as the server's error or the text of a `Reject`; the text of
    another error of a handler only if it may be shown.
    """

    at: float
    reason: str
    subject: str | None = None
    sequence: int | None = None
    attempt: int = 1
    place: str | None = None
    detail: str | None = None

    @property
    def described(self) -> str:
        """The reason, with place and detail if they are known."""
        text = self.reason if self.place is None else f"{self.reason} at {self.place}"
        return text if self.detail is None else f"{text}: {self.detail}"


@dataclass(slots=True)
class Behind:
    """How far a route is behind its stream: the messages that match and are not settled, as seen by one process.

    `pending` were not delivered yet `known_for` seconds ago, `unsettled` are here: in hand, or to be redelivered.
    `elsewhere` are unacked at the server beyond these; below 0 if other processes have settled some of them. `seconds`
    is the age of the oldest message.
    """

    pending: int
    unsettled: int = 0
    elsewhere: int = 0
    seconds: float = 0.0
    known_for: float = 0.0

    @classmethod
    def of_parts(cls, parts: Collection[Behind]) -> Behind | None:
        """Return how far a route is behind whose parts are that far behind; None if there are none."""
        if not parts:
            return None
        return cls(
            sum(one.pending for one in parts),
            sum(one.unsettled for one in parts),
            sum(one.elsewhere for one in parts),
            max(one.seconds for one in parts),
            max(one.known_for for one in parts),
        )

    @property
    def messages(self) -> int:
        """The number of messages."""
        return self.pending + max(0, self.unsettled + self.elsewhere)


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


@dataclass(frozen=True, slots=True)
class Schedules:
    """The schedules of one kind of a route: delayed copies, or retries.

    `stored` were confirmed by their streams, as this process has counted. `waiting` are there, whichever process stored
    them, as of the last look at the streams, at most a minute ago; None while that is not known. `fired` were received
    here when they were due, and `lost` were found missing here; None for delayed copies, which no route receives.
    """

    stored: int
    waiting: int | None
    fired: int | None = None
    lost: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A `Holder` as numbers."""

    in_hand: int | None = None
    limited: int = 0
    retrying: tuple[int, float] = (0, 0.0)
    uncounted: int = 0
    behind: Behind | None = None
    partitions: Partitions | None = None


@dataclass(slots=True)
class BreakerState:
    """The breaker of one destination. A message may be tried from `probe_at` on; `why_open` is None while closed."""

    connection: str
    template: str
    state: str = "closed"
    probe_at: float = 0.0
    why_open: str | None = None


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A value that was counted, and the id of the trace that shows where it comes from. `at` is a Unix time."""

    trace_id: str
    value: float
    at: float
