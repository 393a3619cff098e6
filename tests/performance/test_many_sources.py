"""Small runs of the benchmarks with many routes, streams and keys, and over three servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.performance.benchmarks.contestants import CORE, STREAM, routes_of
from tests.performance.benchmarks.load import Reading
from tests.performance.benchmarks.load_stream import begins
from tests.performance.benchmarks.setting import setting
from tests.performance.benchmarks.workloads import WORKLOADS, many
from tests.performance.benchmarks.workloads.many import of


@pytest.mark.nightly
@pytest.mark.timeout(240)
@pytest.mark.parametrize("workload", ["routes", "streams", "keys", "cluster"])
async def test_no_message_is_lost_in_a_small_run(workload: str, tmp_path: Path) -> None:
    async with setting(tmp_path, quick=True, say=print) as given:
        (section,) = await WORKLOADS[workload](replace(given, rounds=1, seconds=0.5))
    for name, turns in section.turns.items():
        if name.startswith("router_trio"):
            assert not turns.failures
            assert all(figures["lost"] == 0 for figures in turns.figures)


def test_each_of_several_sources_has_a_route() -> None:
    assert routes_of(CORE, sources=0).count("[[routes]]") == 1
    assert 'from.subject = "in.0001.*"' in routes_of(CORE, sources=2)
    assert 'from.stream = "IN-0001"' in routes_of(STREAM, sources=2)
    assert 'subject = "out.0001.{{wildcard(1)}}"' in routes_of(STREAM, sources=2)


@pytest.mark.parametrize(
    ("received", "seconds", "part", "whole"),
    [
        (1, 0.0, False, True),
        (60, 0.4, False, True),
        (49, 0.6, False, True),
        (60, 0.6, True, True),
        (334, 0.1, True, True),
    ],
)
def test_a_whole_run_is_measured_from_its_first_message_and_a_part_after_a_warm_up(
    received: int, seconds: float, part: bool, whole: bool
) -> None:
    reading = Reading(10.0 + seconds, received, contestant=0.0, generator=0.0, server=0.0)
    spec = {"messages": 1000, "warm_up": 0.5}
    assert begins(reading, 10.0, spec) is part
    assert begins(reading, 10.0, spec | {"whole": True}) is whole


def test_turns_are_named_as_on_the_page() -> None:
    assert of("router_trio", max(many.ROUTES)) == "router_trio, 1,000"
    assert of("router_trio", many.STREAMS) == "router_trio, 200"
    assert of("router_trio", max(many.KEYS)) == "router_trio, 10,000"
