"""When other processes count as using a durable: not for a few missing deliveries, and only while they use it."""

from __future__ import annotations

import pytest

from router_trio.routing.stream.other_processes import LATE, PAUSE_SHARE, TAKE_FOR, OtherProcesses

ACK_WAIT = 2.0


def others(ack_wait: float = ACK_WAIT) -> OtherProcesses:
    made = OtherProcesses()
    made.ack_wait = ack_wait
    return made


def test_no_others_are_assumed_until_a_delivery_is_missing() -> None:
    assert not others().seen(0.0)
    assert not others().take(0.0)


def test_a_missing_delivery_is_remembered_for_twice_the_ack_wait_and_keeps_the_order() -> None:
    made = others()
    made.missed(1, 10.0)
    assert made.seen(10.0)
    assert made.seen(13.9)
    assert not made.seen(14.0)
    assert not any(made.take(at / 10) for at in range(100, 1000))


def test_many_missing_deliveries_within_a_short_time_keep_the_order() -> None:
    made = others()
    for step in range(340):
        made.missed(50, step / 10)
        assert not made.take(step / 10)


@pytest.mark.parametrize("ack_wait", [2.0, 30.0, 100.0])
def test_others_that_use_the_durable_for_long_count_until_twice_the_ack_wait_after_their_last_sign(
    ack_wait: float,
) -> None:
    made, end = others(ack_wait), max(TAKE_FOR, ack_wait + LATE)
    at = 0.0
    while at < end:
        made.missed(1, at)
        assert not made.take(at)
        at += 1.0
    made.missed(1, at)
    assert made.take(at)
    assert made.take(at + 2 * ack_wait - 0.1)
    assert not made.take(at + 2 * ack_wait)
    made.missed(1, at + 3 * ack_wait)
    assert not made.take(at + 3 * ack_wait), "the time starts over"


@pytest.mark.parametrize("ack_wait", [30.0, 100.0, 3600.0])
def test_a_few_missing_deliveries_far_apart_keep_the_order(ack_wait: float) -> None:
    """Messages are taken by hand now and then, and none in the pauses between."""
    made, pause = others(ack_wait), ack_wait + 2 * LATE
    for count in range(4):
        made.missed(3, count * pause)
        assert made.seen(count * pause)
        assert not made.take(count * pause)


def test_two_short_times_of_use_by_others_keep_the_order() -> None:
    """This is the pattern of two rolling updates, one soon after the other."""
    made = others(30.0)
    for began in (0.0, 50.0):
        for step in range(100):
            made.missed(1, began + step / 10)
            assert not made.take(began + step / 10)


@pytest.mark.parametrize("ack_wait", [30.0, 100.0, 3600.0])
def test_others_that_seldom_use_the_durable_count_too_but_later(ack_wait: float) -> None:
    made, least = others(ack_wait), max(TAKE_FOR, ack_wait + LATE)
    for count in range(10):
        made.missed(1, count * ack_wait)
        assert made.take(count * ack_wait) is (count * PAUSE_SHARE * least >= least)


def test_deliveries_redelivered_here_were_not_those_of_others() -> None:
    made = others()
    for at in range(40):
        made.missed(1, float(at))
    assert made.take(39.0)
    made.redelivered(39)
    assert made.seen(39.0)
    made.redelivered(2)
    assert not made.seen(39.0)
    assert not made.take(39.0)
    made.missed(1, 39.5)
    assert made.seen(39.5)
    assert not made.take(39.5)
