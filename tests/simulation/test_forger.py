"""A client that forges answers: the promises hold, and would be broken if the router believed every stream."""

from __future__ import annotations

import pytest

from router_trio.outbox.belief import Belief
from tests.simulation.__main__ import command, story
from tests.simulation.draw import draw
from tests.simulation.forger import FORGED
from tests.simulation.run import simulate
from tests.simulation.shrink import shrink
from tests.support.compiled import looks_inside

SEEDS = [seed for seed in range(1000, 1200) if FORGED in draw(seed).faults][:24]


@pytest.mark.parametrize("first", range(0, len(SEEDS), 8))
def test_the_promises_hold_while_answers_are_forged(first: int) -> None:
    for seed in SEEDS[first : first + 8]:
        outcome = simulate(seed)
        assert not outcome.wrong, f"{command(seed)}\n{story(shrink(outcome))}"


@looks_inside
def test_messages_are_lost_if_every_stream_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Belief, "covered_by", lambda belief, stream: None)
    assert any("source ack" in simulate(seed).promises for seed in SEEDS)


def test_no_forger_is_drawn_where_lookups_are_denied() -> None:
    for steps in [draw(seed).steps for seed in (*range(1000, 1200), 50261)]:
        forged_at = {step.what["broker"] for step in steps if step.kind == FORGED}
        denied_at = {step.what["broker"] for step in steps if step.what.get("what") == "$JS.API.>"}
        assert not forged_at & denied_at
