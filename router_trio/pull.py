"""How much a pull consumer has been asked for, and what its statuses mean. Pure.

Follows the pull consumer's statuses of ADR-13 and ADR-15. Requests are topped up before they are used up, so that the
server always has something to fill; how much is asked for at once bounds what a route holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from router_trio.quotes import excerpt


class Verdict(Enum):
    """What to do after a status."""

    GO_ON = "go on"
    ASK_AGAIN = "ask again"
    REOPEN = "reopen"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a status means; `reason` and `detail` say why for `REOPEN`."""

    verdict: Verdict
    reason: str = ""
    detail: str = ""


class PullCredit:
    """Messages asked for and not yet received. At most `window` are asked for or held at once."""

    __slots__ = ("outstanding", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.outstanding = 0

    def want(self, held: int) -> int:
        """How many to ask for now, when `held` are being worked on: 0 until half of the window is free."""
        free = self.window - held - self.outstanding
        if free * 2 < self.window and self.outstanding:
            return 0
        return max(free, 0)

    def want_again(self, due: int) -> int:
        """How many to ask for when so many are due again, and come before anything new."""
        return max(min(due, self.window) - self.outstanding, 0)

    def asked(self, count: int) -> None:
        """A request for `count` was sent."""
        self.outstanding += count

    def received(self, count: int) -> None:
        """That many messages came."""
        self.outstanding = max(0, self.outstanding - count)

    def forget(self) -> None:
        """No request is under way any more: the link is new, or the consumer moved."""
        self.outstanding = 0

    def status(self, code: int, description: str, unfilled: int | None) -> Reading:
        """Read a status. `unfilled` is its header Nats-Pending-Messages: what that request will not bring."""
        if code == 100:
            return Reading(Verdict.GO_ON)
        words = description.lower()
        if code in (404, 408):
            self.received(self.outstanding if unfilled is None else unfilled)
            return Reading(Verdict.ASK_AGAIN)
        self.forget()
        if code == 409 and ("leadership" in words or "shutdown" in words):
            return Reading(Verdict.ASK_AGAIN)
        if code == 409 and "maxrequestbatch" in words and self.window > 1:
            self.window //= 2
            return Reading(Verdict.ASK_AGAIN)
        if code == 409 and "exceeded" in words:
            # Asking again at once would be refused again at once.
            words = excerpt(description)
            told = f"the server refuses to be asked for messages: {words}; raise that limit of the consumer"
            return Reading(Verdict.REOPEN, "consumer_limit", told)
        if code == 409 and "deleted" in words:
            return Reading(Verdict.REOPEN, "consumer_deleted", "the consumer was deleted")
        if code == 503:
            return Reading(Verdict.REOPEN, "no_responders", "nobody answers for the consumer")
        return Reading(Verdict.REOPEN, "consumer_lost", f"{code} {excerpt(description)}")
