"""router_trio is at least as fast as the client on which it builds, on the same work in the same run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.performance.benchmarks.contestants import CONTESTANTS, CORE, Job
from tests.performance.benchmarks.measure import in_turns, routed
from tests.performance.benchmarks.setting import setting
from tests.performance.benchmarks.workloads.routing import closed_spec


@pytest.mark.nightly
async def test_core_to_core_is_at_least_as_fast_as_nats_py(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with setting(tmp_path, quick=True, say=print) as given:
        spec = closed_spec(given, 128)
        job = Job(given.url, CORE, tmp_path)
        turns = {name: partial(routed, spec, CONTESTANTS[name], job) for name in ("router_trio", "nats_py")}
        results = await in_turns(given.rounds, turns, say=print)
    ours, theirs = results["router_trio"], results["nats_py"]
    assert ours.failures == []
    assert theirs.failures == []
    assert sum(figures["lost"] for figures in ours.figures) == 0
    ratio = ours.median("rate") / theirs.median("rate")
    cost = theirs.median("cpu_us") / ours.median("cpu_us")
    with capsys.disabled():
        print(f"\ncore to core, router_trio / nats-py: rate x {ratio:.2f}, processor time a message x {1 / cost:.2f}")
    assert ratio >= 1
