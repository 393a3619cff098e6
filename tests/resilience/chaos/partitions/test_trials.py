"""Trials of processes that share partitions: one on every run, twenty at night. A broken promise names its command."""

from __future__ import annotations

from math import inf

import pytest

from tests.resilience.chaos.partitions.trial import OF_CLUSTERS, OF_MEMBERS, OF_SERVERS, draw
from tests.resilience.chaos.partitions.verdict import (
    COPIES_WITHIN,
    _gaps,
    copied_again,
    mark_interrupted,
    row,
    run_trial,
)
from tests.simulation.partitions.history import Call, Spell
from tests.support.server_version import needs_server

SLACK = 5.0
"""Additional seconds for each bound: a busy machine starts processes and elects leaders late."""


@needs_server(2, 11, lacks="pinned consumers")
@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("seed", range(10))
async def test_a_trial_breaks_no_promise(seed: int, nodes: int) -> None:
    outcome = await run_trial(draw(seed, nodes), slack=SLACK)
    print(f"\n{row(outcome)}")
    assert not outcome.broken, outcome.report


def test_a_seed_always_draws_the_same_trial() -> None:
    assert draw(5) == draw(5)
    assert draw(5) != draw(6) != draw(6, nodes=3)


def test_every_kind_of_step_is_drawn_by_some_seed() -> None:
    drawn = {step.kind for seed in range(20) for step in draw(seed, 3).steps}
    assert drawn == {*OF_MEMBERS, *OF_SERVERS, *OF_CLUSTERS}


def test_a_partition_is_silent_from_a_message_that_waits_until_the_next_is_stored() -> None:
    assert [*_gaps([0.0, 5.0, 5.1], [0.5, 9.0, 9.1])] == [(5.0, 9.0)]
    assert [*_gaps([0.0, 8.95], [0.5, 9.0])] == [], "nothing was there to be stored"
    assert [*_gaps([0.0, inf], [0.5, 9.0])] == []


def test_only_the_first_call_after_a_suspension_may_have_been_made_before_it() -> None:
    spells = [Spell(10.0, 20.0, 1, suspended=True)]
    before, first, second, of_another = (
        Call(1, "a", 1, 9.9, 20.1),
        Call(1, "b", 2, 20.1),
        Call(1, "c", 3, 20.2),
        Call(2, "d", 4, 20.05),
    )
    calls = [second, first, before, of_another]
    mark_interrupted(calls, spells, dict.fromkeys(range(1, 5), 10.0))
    assert {call.number: call.called for call in calls} == {1: None, 2: 10.0, 3: None, 4: None}
    first.called = None
    mark_interrupted(calls, spells, {1: 9.0, 2: 10.1, 3: 9.0, 4: 9.0})
    assert first.called is None, "the source did not have the message yet"
    mark_interrupted(calls, [Spell(10.0, 20.0, 1)], dict.fromkeys(range(1, 5), 10.0))
    assert first.called is None, "it was cut off"


def test_copying_begins_again_with_the_first_of_messages_that_had_to_wait_for_it() -> None:
    stored = {1: 0.0, 2: 1.0, 3: 1.1, 4: 20.0, 5: 30.0}
    late = 2.0 + COPIES_WITHIN
    assert [*copied_again(stored, {1: 0.1, 2: late, 3: late, 4: 20.1, 5: 30.1})] == [late]
    assert [*copied_again(stored, {1: 0.1, 2: 1.1, 3: 1.2, 4: 20.1, 5: 30.1})] == [], "the source stored nothing"
    assert [*copied_again(stored, {1: 0.1, 2: 1.9, 3: 2.8, 4: 20.1})] == [], "slow, but without a pause"
