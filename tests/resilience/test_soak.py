"""Ten minutes under load with a server that is restarted every twenty seconds. See `soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resilience.soak import soak


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_ten_minutes_of_restarts_lose_nothing_and_leak_nothing(tmp_path: Path) -> None:
    report = await soak(10, 5_000, tmp_path)
    print(f"\n{report}")
    assert not report.broken
