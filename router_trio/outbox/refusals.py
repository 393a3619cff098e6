"""Retry or fail what a server or a link refused, what stays unanswered, and what is too old.

Pure and synchronous; clock and `wake` are given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from router_trio.errors import reasons
from router_trio.outbox.belief import Belief, does_not_count
from router_trio.outbox.capacity import Capacity
from router_trio.outbox.in_flight import denial_keys, reply_key
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.queue import SendQueue
from router_trio.outbox.retries import ACK_BUDGET, ASK_AFTER, ASKED_WITHIN, RETRY_REFUSED_AFTER, Retries
from router_trio.outbox.settlement import Settlement

TriedAgain = Callable[[OperationWithAck, str], None]
"""Is told that a publish was refused for now, or not answered for long, and why. It is held, and may be given up."""

POISON = "the server ended the connection each time that this was sent"


class Refusals:
    """Decide what becomes of each publish of one outbox that is not confirmed on its way."""

    def __init__(
        self,
        queue: SendQueue,
        retries: Retries,
        settlement: Settlement,
        capacity: Capacity,
        belief: Belief,
        *,
        max_age: float,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._in_flight = queue.in_flight
        self._retries = retries
        self._settlement = settlement
        self._capacity = capacity
        self._belief = belief
        self.max_age = max_age
        """Seconds after which a pending publish is dropped; 0 for no end."""
        self._clock = clock
        self._wake = wake
        self.asks_after: bool = False
        """True if a refusal decides only when the publish was sent again and refused again: see `ack_refused`."""
        self._listeners: dict[Hashable, list[TriedAgain]] = {}
        self.accounted_for: dict[bytes, tuple[int, int]] = {}
        """Refusals that may yet come for publishes that have failed already: how many, and the position behind the last
        core publish when that was found out. By `in_flight.denial_keys`."""

    def when_tried_again(self, key: Hashable, tell: TriedAgain) -> None:
        """Call `tell` each time that a publish of this destination (see `capacity_key`) is to be tried again."""
        self._listeners.setdefault(key, []).append(tell)

    def stop_notifying(self, key: Hashable, tell: TriedAgain) -> None:
        """Undo one `when_tried_again`."""
        listeners = self._listeners.get(key, [])
        if tell in listeners:
            listeners.remove(tell)
        if not listeners:
            self._listeners.pop(key, None)

    def ask_after(self) -> None:
        """Let a refusal decide only when the publish was sent again and refused again, from now on."""
        self.asks_after = True

    def link_down(self) -> None:
        """Forget refusals that may yet have come on the link."""
        self.accounted_for.clear()

    # --- refused ---

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool) -> None:
        """Retry a publish that was answered with an error, within its budget and if that may help; else fail it.

        Any client that reads the reply subject can have some stream answer there with an error, or answer itself. So
        with `asks_after` the first one that is final has the publish sent again, under its id: a stream that has it
        says so, and its PubAck counts whenever it comes. The next error decides. `timeout` decides at once: no answer
        says that, but the link itself, which has waited for one.
        """
        operation = self._in_flight.take_acked(order)
        if operation is not None:
            may_be_forged = not retriable and reason != reasons.TIMEOUT
            asked = self.asks_after and may_be_forged and operation.refused_with is None
            if asked:
                operation.refused_with = (reason, detail)
                operation.send_again()
            after = ASK_AFTER if asked else RETRY_REFUSED_AFTER
            self._hold_or_fail(operation, reason, detail, retriable or asked, after)
            self._wake()

    def publish_denied(self, subject: bytes, detail: str) -> bool:
        """Fail what a refused publish to `subject` may have been. Return False if nothing in flight can be meant.

        It names no more than the subject, and may have taken others if a permission was given or taken in between. Of
        core publishes nobody knows which one it was: all to the subject have failed, since one that is published once
        too often is better than one that is lost. As many refusals of the subject as that are then accounted for. A
        JetStream publish tells by its PubAck whether it was taken: the first one fails when no core publish can be
        meant, and one that was meant all the same is sent again, and refused again.
        """
        denied: list[Operation] = [*self._in_flight.take_core_to(subject)]
        more = len(denied) - 1
        if not denied:
            if self._is_accounted_for(subject):
                return True
            operation = self._in_flight.take_unacked_to(subject)
            if operation is None:
                return False
            denied = [operation]
            more = int(operation.written_again)
        self._account_for(subject, more)
        self._fail(denied, reasons.PERMISSION_DENIED, detail)
        self._wake()
        return True

    def reply_denied(self, reply: bytes, detail: str) -> bool:
        """Fail the core publishes with a refused reply subject. Return False if none can be meant.

        All that have it fail, and as many refusals of it are then accounted for.
        """
        denied = self._in_flight.take_core_with_reply(reply)
        if not denied:
            return self._is_accounted_for(reply_key(reply))
        self._account_for(reply_key(reply), len(denied) - 1)
        self._fail(denied, reasons.PERMISSION_DENIED, detail)
        self._wake()
        return True

    def something_denied(self, detail: str) -> list[bytes]:
        """Fail all core publishes in flight, since the server refused something and does not say what.

        JetStream publishes are told by their PubAcks. Returns the subjects of what has failed. Each may be refused by
        its name as well, which then is accounted for.
        """
        denied = self._in_flight.take_all_core()
        subjects: dict[bytes, None] = {}
        for together in denied:
            for one in together.split():
                for key in denial_keys(one):
                    self._account_for(key, 1)
                subjects[one.subject] = None
        if denied:
            self._fail(denied, reasons.PERMISSION_DENIED, detail)
            self._wake()
        return [*subjects]

    def _account_for(self, key: bytes, more: int) -> None:
        if more:
            before, _ = self.accounted_for.get(key, (0, 0))
            self.accounted_for[key] = before + more, self._in_flight.written

    def _is_accounted_for(self, key: bytes) -> bool:
        more, written = self.accounted_for.get(key, (0, 0))
        if more > 1:
            self.accounted_for[key] = more - 1, written
        elif more:
            del self.accounted_for[key]
        return more > 0

    def fence_answered(self, mark: int) -> None:
        """Expect no more refusals of what was written before `mark`."""
        for subject, (_, written) in [*self.accounted_for.items()]:
            if written <= mark:
                del self.accounted_for[subject]

    def write_refused(self, operation: Operation, reason: str, detail: str, retriable: bool = False) -> None:
        """Hold or fail an operation, or a part of one, that the link took and did not write."""
        for one in self._queue.remains(operation):
            if self._queue.withdraw(one):
                self._hold_or_fail(one, reason, detail, retriable)
        self._wake()

    def ended_links(self, operation: Operation) -> bool:
        """Fail an operation because of which links end, as `poison`. Return False if it has a fate already."""
        if not self._queue.withdraw(operation):
            return False
        self._fail([operation], reasons.POISON, POISON)
        return True

    # --- not in time ---

    def give_up(self, operation: Operation, reason: str, detail: str) -> bool:
        """Fail an operation wherever it is. Return False if it has a fate already."""
        if not self._queue.withdraw(operation):
            return False
        self._fail([operation], reason, detail)
        self._wake()
        return True

    def time_over(self, order: int, seconds: float) -> None:
        """Fail the JetStream publish with this number, whose publisher has waited so long, unless it has a fate.

        What it was refused for all the time says more than that the time is over.
        """
        operation = self._queue.find(order)
        if operation is not None:
            reason, detail = operation.refused_for or (self._capacity.reason_late(operation.subject), "")
            self.give_up(operation, reason, self.no_puback(operation, seconds, detail))

    def sweep(self) -> None:
        """Send again what has been without a PubAck for long on this link, and fail what is over its budget.

        Drop what has waited longer than `pending_max_age`.
        """
        if self.max_age:
            self.expire()
        self._fail_refused(self._clock() - ASKED_WITHIN)
        by_refusal, again = self._retries.sweep()
        for (reason, refused_with), operations in by_refusal.items():
            over: dict[str, list[Operation]] = {}
            for one in operations:
                over.setdefault(self.no_puback(one, ACK_BUDGET, refused_with), []).append(one)
            for detail, alike in over.items():
                self._fail([one for one in alike if self._queue.withdraw(one)], reason, detail)
        for operation in again:
            self._tell_tried_again(operation, reasons.TIMEOUT)
        self._belief.sweep(again, self._has_fate)
        self._wake()

    def no_puback(self, operation: Operation, seconds: float, refused_with: str = "") -> str:
        """Return why a publish is given up after so many seconds.

        It may have been refused and tried again, and PubAcks that came may not have counted.
        """
        stream = self._belief.passed_over(operation.order)
        told = f"no PubAck within {seconds:g} s"
        told += f", and the last answer was: {refused_with}" if refused_with else ""
        return told if stream is None else f"{told}; {does_not_count(stream)}"

    def expire(self) -> None:
        """Drop what has been pending for longer than `max_age`."""
        dropped = self._queue.drop_older_than(self._clock() - self.max_age)
        if dropped:
            self._settlement.drop(dropped, reasons.EXPIRED)
            self._in_flight.tell_if_none()

    # --- inside ---

    def _fail_refused(self, written_at: float) -> None:
        """Fail what was refused for good, was sent again at or before that time, and has had no answer since."""
        if not self.asks_after:
            return
        by_refusal: dict[tuple[str, str], list[Operation]] = {}
        for one in self._in_flight.unacked_since(written_at):
            if one.refused_with is not None:
                by_refusal.setdefault(one.refused_with, []).append(one)
        for (reason, detail), operations in by_refusal.items():
            self._fail([one for one in operations if self._queue.withdraw(one)], reason, detail)

    def _has_fate(self, order: int) -> bool:
        """Return True unless a JetStream publish was written and waits for its PubAck, or to be sent again."""
        return order not in self._in_flight.unacked and self._queue.lanes.find(order) is None

    def _hold_or_fail(
        self, operation: Operation, reason: str, detail: str, retriable: bool, after: float = RETRY_REFUSED_AFTER
    ) -> None:
        held = (
            retriable
            and isinstance(operation, OperationWithAck)
            and self._capacity.may_hold(operation)
            and self._retries.hold(operation, reason, detail, after)
        )
        if held:
            self._in_flight.tell_if_none()
            assert isinstance(operation, OperationWithAck)
            self._tell_tried_again(operation, reason)
        else:
            self._fail([operation], reason, detail)

    def _tell_tried_again(self, operation: OperationWithAck, reason: str) -> None:
        if self._listeners:
            for tell in self._listeners.get(operation.capacity_key, ()):
                tell(operation, reason)

    def _fail(self, operations: Sequence[Operation], reason: str, detail: str) -> None:
        self._retries.left(operations, accepted=False)
        self._settlement.fail(operations, reason, detail)
        self._in_flight.tell_if_none()
