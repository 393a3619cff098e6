"""Accounts for how much a pull consumer was asked for, in messages and in bytes, and reads its statuses. Pure.

Follows the statuses of pull consumers in ADR-13 and ADR-15. Requests are topped up before they are used up, so that the
server always has one to fill. The size of a request bounds what a route holds, and the requests of all routes of a
connection bound what the server has to write to it: a server cuts a connection with more than `max_pending` (64 MiB by
default) unwritten bytes.

A server ends a request when the next message is larger than the rest of its bytes, and reports that rest. So the size
of messages need not be known in advance: the next request is large enough.

If that message was to be redelivered, nats-server (2.15.1) moves it behind all other redeliveries. So while messages of
an earlier process or link may be redelivered, one request is made at a time. It has room for the largest message, if
the share of the consumer has, and for few enough messages that it seldom ends early. If it does, `moved` is set: the
messages have to be requested again, in their order, before the next request, which can't be refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from router_trio.errors import reasons
from router_trio.errors.quotes import excerpt

CONNECTION_BYTES = 32 * 1024 * 1024
"""Most bytes that the consumers of one connection may request at a time: half of a server's usual `max_pending`."""

LEAST_CONNECTION_BYTES = 1024 * 1024
"""Smallest credit, in bytes, of a connection that servers cut again and again."""

GROWS_AFTER = 60.0
"""Seconds until the credit of a connection that was cut is doubled. This time is doubled each time it is cut."""

LONGEST_UNTIL_GROWTH = 3600.0

SMALLEST_REQUEST = 64 * 1024
"""Bytes of the smallest request, unless a consumer's share of its connection is smaller."""

LARGEST_REQUEST = 65 * 1024 * 1024
"""Bytes of the largest request: the largest message that any server takes has 64 MiB, to which its subjects are
added."""

ALIKE = 1024
"""Bytes by which the next message may exceed the average and still count as of the same size."""

FEW_REQUESTS = 16
"""Requests waiting at the server never exceed this: each is for half of the window, or for all due redeliveries."""

ASSUMED_SIZE = 1024
"""Bytes of a message, until one was received."""


class Verdict(Enum):
    """How to react to a status."""

    GO_ON = "go on"
    ASK_AGAIN = "ask again"
    REOPEN = "reopen"


@dataclass(frozen=True, slots=True)
class Reading:
    """The meaning of a status. For `REOPEN`, `reason` and `detail` give the cause."""

    verdict: Verdict
    reason: str = ""
    detail: str = ""


class PullBudget:
    """The bytes that all consumers of one connection may have requested at a time.

    Half of it is divided equally, and each consumer can always use its share. The other half is lent to consumers that
    need more than their share for one message, which the server then has ready, so it is soon given back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.consumers: int = 0
        self.lent: int = 0
        self._limit = CONNECTION_BYTES
        self._clock = clock
        self._grows_at = 0.0
        self._grows_after = GROWS_AFTER
        self._waiting: deque[Callable[[], None]] = deque()

    def join(self) -> None:
        """Add a consumer."""
        self.consumers += 1

    def consumer_gone(self) -> None:
        """Remove a consumer."""
        assert self.consumers > 0, "each consumer joined"
        self.consumers -= 1

    @property
    def limit(self) -> int:
        """The bytes that all consumers together may have requested."""
        if self._limit < CONNECTION_BYTES and self._clock() >= self._grows_at:
            self._limit = min(2 * self._limit, CONNECTION_BYTES)
            self._grows_at = self._clock() + self._grows_after
        return self._limit

    @property
    def share(self) -> int:
        """The bytes that each consumer may have requested without borrowing."""
        return max(1, self.limit // 2 // max(1, self.consumers))

    def borrow(self, amount: int, notify: Callable[[], None]) -> bool:
        """Return True if `amount` bytes may be requested now; else call `notify` once, when some have been given back.

        An amount above the total is lent to one consumer at a time.
        """
        if self.lent and self.lent + amount > self.limit // 2:
            if notify not in self._waiting:
                self._waiting.append(notify)
            return False
        self.lent += amount
        return True

    def give_back(self, amount: int) -> None:
        """Give back borrowed bytes that are no longer requested."""
        assert 0 < amount <= self.lent, "no more is given back than was lent"
        self.lent -= amount
        waiting, self._waiting = self._waiting, deque()
        for notify in waiting:
            notify()

    def cut(self) -> None:
        """Halve the budget for a while: the server ended the connection, perhaps because too much was unwritten."""
        self._limit = max(self.limit // 2, LEAST_CONNECTION_BYTES)
        self._grows_at = self._clock() + self._grows_after
        self._grows_after = min(2 * self._grows_after, LONGEST_UNTIL_GROWTH)


class PullCredit:
    """Account for what was requested and not yet received.

    At most `window` messages and `window_bytes` are requested or held. A size is what the server counts: subject, reply
    subject, headers and payload. A message that alone is larger than `window_bytes` is requested when nothing else is
    held. `notify` is called when more may be requested, after `size` has returned 0.
    """

    __slots__ = (
        "_average",
        "_borrowed",
        "_budget",
        "_largest",
        "_least",
        "_most",
        "_notify",
        "_requests",
        "_seen",
        "_unreported",
        "most_requests",
        "moved",
        "outstanding",
        "outstanding_bytes",
        "redelivers",
        "window",
        "window_bytes",
    )

    def __init__(self, window: int, window_bytes: int, budget: PullBudget, notify: Callable[[], None]) -> None:
        self.window: int = window
        self.window_bytes: int = window_bytes
        self.outstanding: int = 0
        self.outstanding_bytes: int = 0
        self.most_requests: int = 0
        """Requests that may wait at the server at a time; 0 for no limit."""
        self.redelivers: bool = False
        """True while the server may redeliver messages that this process does not know, so that it can't order them."""
        self.moved: bool = False
        """True if one of these may have lost its place in the server's queue."""
        self._largest = LARGEST_REQUEST
        self._seen = 0
        """Bytes of the largest message among the redelivered ones."""
        self._requests = 0
        self._budget = budget
        self._notify = notify
        self._borrowed = 0
        self._unreported = 0
        """Bytes of requests whose messages have all arrived, and whose final status has not."""
        self._average = ASSUMED_SIZE
        self._least = 1
        self._most = LARGEST_REQUEST

    def want(self, held: int, held_bytes: int) -> int:
        """Return how many messages to request while `held` are being processed: 0 until half of the window is free."""
        free = self.window - held - self.outstanding
        if self.outstanding and free * 2 < self.window:
            return 0  # the usual case
        if self._is_full or (self.redelivers and self.outstanding):
            return 0
        free_bytes = self.window_bytes - held_bytes
        if self.outstanding:
            window_bytes = min(self.window_bytes, self._budget.share)
            free_bytes = min(free_bytes, window_bytes) - self.outstanding_bytes
            if free_bytes * 2 < window_bytes:
                return 0
        elif held and free_bytes < max(self._least, min(SMALLEST_REQUEST, self.window_bytes)):
            return 0
        return max(free, 0)

    def want_again(self, due: int) -> int:
        """Return how many messages to request when `due` redeliveries precede anything new."""
        if self._is_full or (self.redelivers and self.outstanding):
            return 0
        return max(min(due, self.window) - self.outstanding, 0)

    def size(self, wanted: int, held_bytes: int) -> int:
        """Return the bytes to request for `wanted` messages; 0 if they must be borrowed, and can't be now."""
        share = self._budget.share
        free = min(self.window_bytes - held_bytes, share) - self.outstanding_bytes
        if free <= 0:  # redeliveries are requested even without room
            free = min(SMALLEST_REQUEST, self.window_bytes, share)
        # Twice the expected size, so that a request seldom ends before it has returned all of its messages.
        expected, least = 2 * self._average, SMALLEST_REQUEST
        if self.redelivers:
            expected, least = self._each, self._largest
        size = min(max(wanted * expected, least), free)
        size = min(max(size, self._least), self._most)
        more = self.outstanding_bytes + size - share - self._borrowed
        if more > 0:
            if not self._budget.borrow(more, self._notify):
                return 0
            self._borrowed += more
        return size

    def batch(self, wanted: int, size: int) -> int:
        """Return how many of the `wanted` messages to request with `size` bytes, the last result of `size`."""
        if self._borrowed or size > self.window_bytes:
            return 1  # for one large message: borrowed room is returned as soon as it was received
        if self.redelivers:
            return 1 if self._least > 1 else max(1, min(wanted, size // self._each))
        return wanted

    def max_bytes(self, batch: int, size: int) -> int:
        """Return the limit in bytes of a request; 0 for none, so that the server can't refuse it by size."""
        return 0 if self.redelivers and batch == 1 and size >= self._largest else size

    @property
    def _each(self) -> int:
        """The bytes for each redelivered message: twice the largest seen size, at first the largest possible one."""
        return 2 * self._seen or self._largest

    @property
    def _is_full(self) -> bool:
        """Return True if the server accepts no further request until one of the waiting ones is over.

        Which of several is over is unknown. Where any number of them may wait, they are not counted.
        """
        return 0 < self.most_requests <= FEW_REQUESTS and self._requests >= self.most_requests and self.outstanding > 0

    def asked(self, count: int, size: int) -> None:
        """Record that a request for `count` messages, of `size` bytes at most, was sent."""
        self._requests = 1 if not self.outstanding else self._requests + 1
        self.outstanding += count
        self.outstanding_bytes += size

    def redeliver(self, largest: int) -> None:
        """Expect redeliveries of messages that this process does not know. `largest`: the size that one may have."""
        self.redelivers, self.moved = True, False
        self._largest, self._seen = min(largest, LARGEST_REQUEST), 0

    def redelivered(self, largest: int) -> None:
        """Record the size of the largest of some redelivered messages."""
        self._seen = max(self._seen, largest)

    def nothing_due(self) -> None:
        """Record that none of them is due: a new message was delivered, or nothing until a request ended."""
        self.redelivers = self.moved = False

    @property
    def borrowed(self) -> bool:
        """Return True if borrowed bytes are requested, which others may need: they should be given back soon."""
        return self._borrowed > 0

    def count_received(self, count: int, size: int) -> None:
        """Record that `count` messages (at least one) of `size` bytes were received."""
        self._average = size // count
        self._least = 1
        self._ended(count, size)

    def _ended(self, count: int, size: int) -> None:
        outstanding, outstanding_bytes = self.outstanding - count, self.outstanding_bytes - size
        if outstanding <= 0 or outstanding_bytes <= 0:
            # All requests are over: a request that was filled to the last byte ends without a status.
            self._unreported += max(outstanding_bytes, 0)
            outstanding = outstanding_bytes = 0
        self.outstanding, self.outstanding_bytes = outstanding, outstanding_bytes
        if self._borrowed:
            self._give_back()

    def _give_back(self) -> None:
        kept = min(self._borrowed, max(0, self.outstanding_bytes - self._budget.share))
        returned, self._borrowed = self._borrowed - kept, kept
        if returned:
            self._budget.give_back(returned)

    def clear(self) -> None:
        """Forget all requests: the link is new, or the consumer has moved."""
        self.outstanding = self.outstanding_bytes = self._unreported = 0
        self._least = 1
        self._give_back()

    def reopened(self, window: int) -> None:
        """Forget what statuses have revealed about request sizes: the link or the consumer is new.

        A client that may publish to the inbox can forge them.
        """
        self.clear()
        self.window, self._most = window, LARGEST_REQUEST
        self.redelivers = self.moved = False

    def read_status(self, code: int, description: str, unfilled: int | None, unfilled_bytes: int | None) -> Reading:
        """Interpret a status.

        `unfilled` and `unfilled_bytes` are its headers Nats-Pending-Messages and Nats-Pending-Bytes: the part of the
        request that will not be filled.
        """
        if code == 100:
            return Reading(Verdict.GO_ON)
        words = description.lower()
        ended = code in (404, 408) or (code == 409 and ("batch completed" in words or "exceeds maxbytes" in words))
        if ended:
            left = self.outstanding_bytes if unfilled_bytes is None else unfilled_bytes
            if "batch completed" in words and not unfilled:
                # These bytes don't belong to requests made since its last message, which may have arrived in an earlier
                # read.
                late = min(left, self._unreported)
                self._unreported -= late
                left -= late
            self._ended(self.outstanding if unfilled is None else unfilled, left)
            if "exceeds maxbytes" in words:
                return self._too_large_for(left)
            self._least = 1  # if it was for a large message, that one was taken
            return Reading(Verdict.ASK_AGAIN)
        self.clear()
        self.moved = self.redelivers
        if code == 409 and ("leadership" in words or "shutdown" in words):
            return Reading(Verdict.ASK_AGAIN)
        if code == 409 and "maxrequestbatch" in words and self.window > 1:
            self.window //= 2
            return Reading(Verdict.ASK_AGAIN)
        if code == 409 and "maxrequestmaxbytes" in words and self._most > 1:
            self._most //= 2
            return Reading(Verdict.ASK_AGAIN)
        if code == 409 and "exceeded" in words:
            # A new request would be refused at once.
            words = excerpt(description)
            detail = f"the server refuses the pull requests: {words}; raise that limit of the consumer"
            return Reading(Verdict.REOPEN, reasons.CONSUMER_LIMIT, detail)
        if code == 423:
            return Reading(Verdict.REOPEN, reasons.LEAD_LOST, "another process has taken over")
        if code == 409 and "deleted" in words:
            return Reading(Verdict.REOPEN, reasons.CONSUMER_DELETED, "the consumer was deleted")
        if code == 503:
            return Reading(Verdict.REOPEN, reasons.NO_RESPONDERS, "no server answers for the consumer")
        return Reading(Verdict.REOPEN, reasons.CONSUMER_LOST, f"{code} {excerpt(description)}")

    def _too_large_for(self, left: int) -> Reading:
        """Make the next request large enough for a message that exceeded the rest of a request."""
        if self.redelivers:
            self.moved, self._least = True, min(max(self._least, self._largest), self._most)
        if left >= self._most:
            detail = f"the next message is larger than the {self._most} bytes that may be asked for at once"
            return Reading(Verdict.REOPEN, reasons.CONSUMER_LIMIT, f"{detail}; raise max_bytes of the consumer")
        if self.redelivers:
            return Reading(Verdict.ASK_AGAIN)
        alike = self._average + ALIKE
        guess = alike if alike > left else max(2 * left, SMALLEST_REQUEST)
        self._least = min(max(self._least, guess), self._most)
        return Reading(Verdict.ASK_AGAIN)
