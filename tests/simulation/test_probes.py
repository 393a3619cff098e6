"""Exactly what the judge allows a message that is sent when all is well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router_trio.routing.stream.pulling.checks import DENIED_CHECK_EVERY
from tests.simulation.draw import draw
from tests.simulation.schedule import Step
from tests.simulation.simulation import PROBED_LATE_WITHIN, PROBED_WITHIN, probed_within


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("second process",), PROBED_LATE_WITHIN),
        (("message lost",), PROBED_LATE_WITHIN),
        (("half-open",), PROBED_LATE_WITHIN),
        (("small max_payload",), PROBED_LATE_WITHIN),
        (("reload",), PROBED_WITHIN),
        (("cut",), PROBED_WITHIN),
        (("second process", "durable deleted", "requests refused"), PROBED_LATE_WITHIN + DENIED_CHECK_EVERY),
        (("second process", "durable deleted"), PROBED_LATE_WITHIN),
        (("second process", "requests refused"), PROBED_LATE_WITHIN),
        (("durable deleted", "requests refused"), PROBED_WITHIN),
    ],
)
def test_a_probe_may_be_late_only_where_something_is_found_out_late(kinds: tuple[str, ...], expected: float) -> None:
    steps = tuple(Step(1.0, kind, 0.0, {}) for kind in kinds)
    assert probed_within(replace(draw(0), faults=kinds, steps=steps)) == expected
