"""Drawn histories of delayed copies and scheduled retries: none is early, lost or there twice, and the sums add up."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from router_trio.routing.policy.delay import Delay
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.retries import origin
from router_trio.routing.stream.retries.schedules import Report, RetrySchedules
from router_trio.states import DestinationState
from tests.simulation.__main__ import KINDS, story
from tests.simulation.delays import simulate

SEEDS = 20
NIGHTLY = 2_000


def assert_kept(seeds: range) -> None:
    for seed in seeds:
        outcome = simulate(seed)
        assert not outcome.wrong, f"{KINDS['delays'].command(seed)}\n{story(outcome)}"


@pytest.mark.timeout(120)
def test_no_copy_and_no_retry_is_early_lost_or_doubled() -> None:
    assert_kept(range(SEEDS))


@pytest.mark.nightly
@pytest.mark.timeout(7_200)
def test_no_copy_and_no_retry_is_early_lost_or_doubled_in_many_histories() -> None:
    assert_kept(range(SEEDS, NIGHTLY))


def _early_copies(patch: pytest.MonkeyPatch) -> None:
    due_ns: Callable[..., int] = Delay.due_ns
    patch.setattr(Delay, "due_ns", lambda delay, facts, now_ns: max(0, due_ns(delay, facts, now_ns) - 10**9))


def _early_retries(patch: pytest.MonkeyPatch) -> None:
    store = RetrySchedules.store

    def early(schedules: RetrySchedules, delivery: StreamDelivery, delay: float, report: Report) -> None:
        store(schedules, delivery, delay - 1.0, report)

    patch.setattr(RetrySchedules, "store", early)


def _no_wait_for_a_lookup(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DestinationState, "awaits_lookup", property(lambda state: False, lambda state, value: None))


def _headers_end_at_a_colon(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(origin, "_RENAMED", re.compile(rb"\n((?i:Nats-|Router-Message-Id|Router-Origin-)[^:\r\n]*:)"))


FAULTY = {
    "early copies": ("early copies", _early_copies),
    "early attempts": ("early attempts", _early_retries),
    "no wait for a lookup": ("lost: ", _no_wait_for_a_lookup),
    "control headers without a colon": ("lost: ", _headers_end_at_a_colon),
}
"""The words of a judge, with what breaks the router."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("found", "break_it"), FAULTY.values(), ids=FAULTY)
def test_a_faulty_router_is_found(
    found: str, break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    assert any(found in detail for seed in range(SEEDS) for _, detail in simulate(seed).wrong)
