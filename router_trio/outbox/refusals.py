"""Decides whether publishes that were refused, not answered or kept for too long are retried or fail.

Pure and synchronous; clock and `wake` are passed in.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

from router_trio.errors import reasons
from router_trio.outbox.belief import Belief, does_not_count
from router_trio.outbox.capacity import Capacity
from router_trio.outbox.in_flight import denial_keys, reply_key
from router_trio.outbox.operation import Operation, OperationWithAck
from router_trio.outbox.queue import SendQueue
from router_trio.outbox.retries import ACK_BUDGET, ASK_AFTER, ASKED_WITHIN, RETRY_REFUSED_AFTER, Retries
from router_trio.outbox.settlement import Settlement


class RetryListener(Protocol):
    """Observes the publishes of one destination while some of its outbox are retried."""

    def retried(self, operation: OperationWithAck, reason: str) -> None:
        """Record that a publish was refused for now, or not answered for long: it is held now, and may be given up."""

    def accepted(self, operation: OperationWithAck) -> None:
        """Record that a stream has accepted a publish."""


FIRST_ASKED = 10**17
"""The smallest number in the reply subject of a publish that is sent again after a refusal that may be forged. It has
as many digits as any number may have, and no publish has so large a number of its own."""

REFUSED_WHEN_SHUT_FOR = 2.0
"""Seconds after which a publish to a destination without a stream counts as refused, which is longer than a lookup."""

STREAMLESS = "no stream takes this subject"

POISON = "the server ended the connection each time that this was sent"


class Refusals:
    """Decide what happens to each publish of one outbox that is not confirmed the first time it is sent."""

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
        """Seconds after which a pending publish is dropped; 0 for no limit."""
        self._clock = clock
        self._wake = wake
        self.resends_refused: bool = False
        """True if a publish that is refused for good is sent once more before the refusal counts: see `ack_refused`."""
        self._asked: dict[int, OperationWithAck] = {}
        """Publishes sent again after a refusal that may be forged, by their numbers `asked_as`; some have a fate."""
        self._listeners: dict[Hashable, list[RetryListener]] = {}
        self.expected_denials: dict[bytes, tuple[int, int]] = {}
        """Denials that may still arrive for publishes that have failed already, by `in_flight.denial_keys`: their
        number, and the position behind the last core publish when the failure was recorded."""

    def notify_of_retries(self, key: Hashable, listener: RetryListener) -> None:
        """Notify `listener` of retries of this destination's publishes (see `capacity_key`)."""
        self._listeners.setdefault(key, []).append(listener)

    def stop_notifying(self, key: Hashable, listener: RetryListener) -> None:
        """Undo one call of `notify_of_retries`."""
        listeners = self._listeners.get(key, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._listeners.pop(key, None)

    def resend_refused(self) -> None:
        """From now on, send a publish that is refused for good once more before the refusal counts."""
        self.resends_refused = True

    def link_down(self) -> None:
        """Forget the denials still expected, and the publishes asked about, on the link that was lost."""
        self.expected_denials.clear()
        self._asked.clear()

    # --- refused or denied ---

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool) -> None:
        """Retry a publish that was answered with an error, if that may help and its budget allows it; else fail it.

        Any client that can read the reply subject can make some stream answer there with an error, or send one itself,
        and can guess the reply subjects of the next publishes, whose numbers are consecutive. So with `resends_refused`
        the publish is sent again after the first final error, with the same id and a random number in its reply
        subject: a stream that has stored it answers with a PubAck, which counts whenever it arrives. The next error to
        the random number is final; see `answered`. `timeout` is final at once, because it is not an answer: the link
        itself reports it after waiting for one.
        """
        operation = self._in_flight.take_acked(order)
        if operation is not None:
            may_be_forged = not retriable and reason != reasons.TIMEOUT
            asked = self.resends_refused and may_be_forged and operation.refused_with is None
            if asked:
                number = FIRST_ASKED + secrets.randbelow(9 * FIRST_ASKED)
                operation.ask(number, reason, detail)
                self._asked[number] = operation
            after = ASK_AFTER if asked else RETRY_REFUSED_AFTER
            self._hold_or_fail(operation, reason, detail, retriable or asked, after)
            self._wake()

    def asked(self, number: int) -> OperationWithAck | None:
        """Return the publish without a fate that was sent again with this number in its reply subject."""
        operation = self._asked.get(number)
        return operation if operation is not None and self._queue.find(operation.order) is operation else None

    def answered(self, number: int) -> OperationWithAck | None:
        """Return the publish that an error with this number in its subject decides about; None if there is none.

        Once a publish was sent again with a random number, an error to its own number decides nothing.
        """
        if number >= FIRST_ASKED:
            return self.asked(number)
        operation = self._queue.find(number)
        return None if operation is None or operation.asked_as is not None else operation

    def publish_denied(self, subject: bytes, detail: str) -> bool:
        """Fail the publishes that a denial of `subject` may be about. Return False if nothing in flight matches.

        A denial contains only the subject, and the server may have accepted other publishes to it if the permission was
        granted or revoked in between. Which of the core publishes was denied is unknown, so all of them to the subject
        fail: publishing one twice is better than losing one. As many denials of the subject are then expected. A
        JetStream publish shows by its PubAck whether it was accepted. So if no core publish matches, only the first
        JetStream publish fails; if the denial was about a later one, that one is sent again and denied again.
        """
        denied: list[Operation] = [*self._in_flight.take_core_to(subject)]
        more = len(denied) - 1
        if not denied:
            if self._was_expected(subject):
                return True
            operation = self._in_flight.take_unacked_to(subject)
            if operation is None:
                return False
            denied = [operation]
            more = int(operation.may_be_denied_twice)
        self._expect_denials(subject, more)
        self._fail(denied, reasons.PERMISSION_DENIED, detail)
        self._wake()
        return True

    def reply_denied(self, reply: bytes, detail: str) -> bool:
        """Fail the core publishes with a denied reply subject. Return False if the denial matches none.

        All that have this reply subject fail, and as many further denials of it are expected.
        """
        denied = self._in_flight.take_core_with_reply(reply)
        if not denied:
            return self._was_expected(reply_key(reply))
        self._expect_denials(reply_key(reply), len(denied) - 1)
        self._fail(denied, reasons.PERMISSION_DENIED, detail)
        self._wake()
        return True

    def something_denied(self, detail: str) -> list[bytes]:
        """Fail all core publishes in flight after a denial that names no subject.

        JetStream publishes are decided by their PubAcks. Returns the subjects of the failed publishes. Each may also be
        denied by name, which is then expected.
        """
        denied = self._in_flight.take_all_core()
        subjects: dict[bytes, None] = {}
        for together in denied:
            for one in together.split():
                for key in denial_keys(one):
                    self._expect_denials(key, 1)
                subjects[one.subject] = None
        if denied:
            self._fail(denied, reasons.PERMISSION_DENIED, detail)
            self._wake()
        return [*subjects]

    def _expect_denials(self, key: bytes, more: int) -> None:
        if more:
            before, _ = self.expected_denials.get(key, (0, 0))
            self.expected_denials[key] = before + more, self._in_flight.written

    def _was_expected(self, key: bytes) -> bool:
        more, written = self.expected_denials.get(key, (0, 0))
        if more > 1:
            self.expected_denials[key] = more - 1, written
        elif more:
            del self.expected_denials[key]
        return more > 0

    def fence_answered(self, mark: int) -> None:
        """Stop expecting denials of publishes that were written before `mark`."""
        for subject, (_, written) in [*self.expected_denials.items()]:
            if written <= mark:
                del self.expected_denials[subject]

    def write_refused(self, operation: Operation, reason: str, detail: str, retriable: bool = False) -> None:
        """Hold or fail an operation, or a part of one, that the link was given and did not write."""
        for one in self._queue.remains(operation):
            if self._queue.withdraw(one):
                self._hold_or_fail(one, reason, detail, retriable)
        self._wake()

    def fail_poison(self, operation: Operation) -> bool:
        """Fail an operation that made links end, as `poison`. Return False if it has a fate already."""
        if not self._queue.withdraw(operation):
            return False
        self._fail([operation], reasons.POISON, POISON)
        return True

    # --- too late ---

    def give_up(self, operation: Operation, reason: str, detail: str) -> bool:
        """Fail an operation wherever it is. Return False if it has a fate already."""
        if not self._queue.withdraw(operation):
            return False
        self._fail([operation], reason, detail)
        self._wake()
        return True

    def timed_out(self, order: int, seconds: float) -> None:
        """Fail the JetStream publish with this number after its publisher waited for `seconds`, unless it has a fate.

        If it was refused all the time, that refusal is the reason, which explains more than a timeout.
        """
        operation = self._queue.find(order)
        if operation is not None:
            refusal = self._retries.refusal_of(operation)
            reason, answer = refusal or (self._capacity.reason_late(operation.subject), "")
            self.give_up(operation, reason, self.no_puback(operation, seconds, answer))

    def sweep(self) -> None:
        """Resend publishes that have had no PubAck for long on this link, and fail those over their budget.

        Also drops publishes pending for longer than `pending_max_age`.
        """
        if self.max_age:
            self.expire()
        self._fail_refused(self._clock() - ASKED_WITHIN)
        by_refusal, again = self._retries.sweep()
        for (reason, answer), operations in by_refusal.items():
            over: dict[str, list[Operation]] = {}
            for one in operations:
                over.setdefault(self.no_puback(one, ACK_BUDGET, answer), []).append(one)
            for detail, alike in over.items():
                self._fail([one for one in alike if self._queue.withdraw(one)], reason, detail)
        for operation in again:
            self._notify_of_retry(operation, reasons.TIMEOUT)
        self._count_as_refused()
        self._belief.sweep(again, self._has_fate)
        self._wake()

    def _count_as_refused(self) -> None:
        """Fail publishes that wait because no stream takes them, or notify their listeners, as if they were refused.

        Not new ones: a lookup since may show that there is a stream now.
        """
        shut = self._queue.lanes.shut
        streamless = {key: one.fails for key, one in shut.items() if one.reason == reasons.NO_RESPONDERS}
        if not streamless:
            return
        before = self._clock() - REFUSED_WHEN_SHUT_FOR
        held = self._queue.lanes.wanted(lambda one: one.capacity_key in streamless and one.accepted_at <= before)
        failed = [one for one in held if streamless[one.capacity_key] and self._queue.withdraw(one)]
        if failed:
            self._fail(failed, reasons.NO_RESPONDERS, STREAMLESS)
        for operation in held:
            if self._queue.find(operation.order) is operation:  # a listener may give up others
                self._notify_of_retry(operation, reasons.NO_RESPONDERS)

    def no_puback(self, operation: Operation, seconds: float, answer: str = "") -> str:
        """Return the text for a publish that is given up after `seconds`.

        It contains the last `answer` (see `Retries.refusal_of`), and the stream whose PubAcks did not count.
        """
        stream = self._belief.passed_over(operation.order)
        text = f"no PubAck within {seconds:g} s"
        text += f", and {answer}" if answer else ""
        return text if stream is None else f"{text}; {does_not_count(stream)}"

    def expire(self) -> None:
        """Drop publishes that have been pending for longer than `max_age`."""
        dropped = self._queue.drop_older_than(self._clock() - self.max_age)
        if dropped:
            self._settlement.drop(dropped, reasons.EXPIRED)
            self._in_flight.notify_if_none()

    # --- internals ---

    def _fail_refused(self, written_at: float) -> None:
        """Fail publishes that were refused for good, sent again at or before `written_at`, and not answered since."""
        if not self.resends_refused:
            return
        self._asked = {number: one for number, one in self._asked.items() if self.asked(number) is not None}
        by_refusal: dict[tuple[str, str], list[Operation]] = {}
        for one in self._in_flight.unacked_since(written_at):
            if one.refused_with is not None:
                by_refusal.setdefault(one.refused_with, []).append(one)
        for (reason, detail), operations in by_refusal.items():
            self._fail([one for one in operations if self._queue.withdraw(one)], reason, detail)

    def _has_fate(self, order: int) -> bool:
        """Return False for a JetStream publish that was written and waits for its PubAck, or to be sent again."""
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
            self._in_flight.notify_if_none()
            assert isinstance(operation, OperationWithAck)
            self._notify_of_retry(operation, reason)
        else:
            self._fail([operation], reason, detail)

    def _notify_of_retry(self, operation: OperationWithAck, reason: str) -> None:
        if self._listeners:
            for listener in self._listeners.get(operation.capacity_key, ()):
                listener.retried(operation, reason)

    def notify_of_acks(self, operations: Iterable[OperationWithAck]) -> None:
        """Record that streams accepted these publishes while others of this outbox are retried."""
        if self._listeners:
            for operation in operations:
                for listener in self._listeners.get(operation.capacity_key, ()):
                    listener.accepted(operation)

    def _fail(self, operations: Sequence[Operation], reason: str, detail: str) -> None:
        self._retries.release(operations, accepted=False)
        self._settlement.fail(operations, reason, detail)
        self._in_flight.notify_if_none()
