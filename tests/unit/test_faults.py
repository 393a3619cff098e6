"""Whose fault each reason is, and what follows: the tables are walked, no reason is picked out."""

from __future__ import annotations

import pytest

from router_trio.errors import codes, reasons
from router_trio.errors.codes import CODES, Asked, Code, Kind
from router_trio.errors.reasons import TABLE, Fault, Reason, Refuses
from router_trio.routing.policy.failed_messages import Failed
from router_trio.routing.policy.retry import Failure, RetryPolicy
from router_trio.settings import RetrySettings

FAILURES = [one for one in TABLE.values() if one.fault in (Fault.MESSAGE, Fault.DESTINATION, Fault.WAY, Fault.UNKNOWN)]
PUBLISHES = [one for one in CODES.values() if one.asked in (Asked.PUBLISH, Asked.ANY)]


def gives_up(reason: str, never: tuple[str, ...] = ()) -> bool:
    """Return True if a message that may fail five times is given up after twenty failures for a reason."""
    policy = RetryPolicy(RetrySettings(attempts=5, never=never), 10, lambda low, high: high)
    known = Failed()
    for _ in range(20):
        known.count(reason)
        if policy.over(Failure(reason), known.attempts):
            return True
    return False


@pytest.mark.parametrize("reason", FAILURES, ids=lambda one: one.name)
def test_only_a_fault_that_may_be_of_the_message_uses_up_attempts(reason: Reason) -> None:
    mine = reason.fault in (Fault.MESSAGE, Fault.UNKNOWN)
    assert reasons.counts_as_attempt(reason.name) == mine
    assert gives_up(reason.name) == mine
    assert gives_up(reason.name, never=(reason.name,))


@pytest.mark.parametrize("code", PUBLISHES, ids=lambda one: str(one.number))
def test_each_code_of_a_refused_publish_follows_its_kind(code: Code) -> None:
    reason = reasons.of_code(code.number)
    if reason in TABLE:
        assert TABLE[reason].fault is Fault.DESTINATION
        return
    assert reasons.counts_as_attempt(reason) == (code.kind is Kind.HEADER)
    if code.kind in (Kind.PLAIN, Kind.PASSES):
        assert reasons.refuses(reason) is Refuses.STREAM
        assert not gives_up(reason)


def test_a_code_that_the_table_does_not_have_may_be_of_the_message() -> None:
    unknown = next(number for number in codes.ALL if number not in CODES)
    assert gives_up(reasons.of_code(unknown))
    assert reasons.refuses(reasons.of_code(unknown)) is Refuses.NOTHING


@pytest.mark.parametrize("reason", TABLE.values(), ids=lambda one: one.name)
def test_only_destinations_refuse_later_messages(reason: Reason) -> None:
    assert reason.refuses is Refuses.NOTHING or reason.fault is Fault.DESTINATION
