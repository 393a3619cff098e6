"""Twenty routes are reloaded again and again, under load. See `reload_soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resilience.reload_soak import FLAT_WITHIN, reload_soak


@pytest.mark.slow
async def test_some_reloads_of_twenty_routes_lose_double_and_overtake_nothing(tmp_path: Path) -> None:
    report = await reload_soak(tmp_path, 50)
    print(f"\n{report}")
    assert not report.wrong
    assert report.reloads == 50


@pytest.mark.nightly
@pytest.mark.timeout(3600)
async def test_thousands_of_reloads_of_twenty_routes_leave_nothing_in_memory(tmp_path: Path) -> None:
    report = await reload_soak(tmp_path, 10_000, rate=20)
    print(f"\n{report}")
    assert not report.wrong
    assert report.growth < FLAT_WITHIN
