"""Until when a process may count on the lead of a partition."""

from __future__ import annotations

from router_trio.link import LEAD_ENDS_AFTER
from router_trio.routing.stream.consumer.lease import Lease


def test_a_lead_counts_from_the_sending_of_the_request_that_proved_it() -> None:
    lease = Lease()
    assert not lease.holds(0.0)
    lease.answered(10.0)
    assert lease.holds(10.0 + LEAD_ENDS_AFTER - 1.0)
    assert not lease.holds(10.0 + LEAD_ENDS_AFTER)


def test_an_answer_that_arrives_out_of_order_shortens_nothing() -> None:
    lease = Lease()
    lease.answered(12.0)
    lease.answered(10.0)
    assert lease.holds(16.0)


def test_a_process_that_was_suspended_does_not_count_on_its_lead() -> None:
    lease = Lease()
    lease.answered(10.0)
    assert not lease.holds(10.0 + 30.0)
    lease.answered(10.1)  # was in the socket all the time
    assert not lease.holds(10.0 + 30.0)


def test_a_lost_lead_is_not_counted_on() -> None:
    lease = Lease()
    lease.answered(10.0)
    lease.lost()
    assert not lease.holds(10.0)
