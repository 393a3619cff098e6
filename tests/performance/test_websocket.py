"""A router by WebSocket reaches at least 0.8 of its rate by TCP, on the same work in the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.performance.benchmarks.setting import setting
from tests.performance.benchmarks.workloads.transport import TCP, WEBSOCKET, websocket

LEAST = 0.8


@pytest.mark.nightly
@pytest.mark.timeout(300)
async def test_a_websocket_is_nearly_as_fast_as_tcp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with setting(tmp_path, quick=True, say=print) as given:
        sections = await websocket(given)
    ratios = {section.name: section.ratio(WEBSOCKET, TCP) for section in sections}
    with capsys.disabled():
        print("\n" + ", ".join(f"{name}: x {ratio:.2f}" for name, ratio in ratios.items()))
    for section in sections:
        assert [turns.failures for turns in section.turns.values()] == [[], []]
        assert sum(figures["lost"] for turns in section.turns.values() for figures in turns.figures) == 0
    assert min(ratios.values()) >= LEAST
