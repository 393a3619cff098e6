"""A route is reloaded from each of its settings to each other one, under load. See `settings_walk`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resilience.settings_walk import SETTINGS, walk
from tests.support.server_version import needs_server

pytestmark = [pytest.mark.slow, needs_server(2, 12, lacks="message schedules")]


async def test_some_reloads_lose_double_and_overtake_nothing(tmp_path: Path) -> None:
    report = await walk(tmp_path, tuple(SETTINGS), reloads=50, fails=False)
    print(report)
    assert not report.wrong
    assert report.reloads == 50


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_reloads_between_all_settings_of_a_durable_lose_double_and_overtake_nothing(tmp_path: Path) -> None:
    report = await walk(tmp_path, tuple(SETTINGS), seed=1, fails=False)
    print(report)
    assert not report.wrong
    assert report.reloads + sum(report.refused.values()) >= len(SETTINGS) * (len(SETTINGS) - 1)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.xfail(
    strict=True,
    reason="a reload without the `schedule` of before forgets the retries that wait in its stream, and one with "
    "another `key` no longer waits for messages that have failed",
)
async def test_reloads_lose_no_message_that_has_failed(tmp_path: Path) -> None:
    report = await walk(tmp_path, tuple(SETTINGS), reloads=100)
    print(report)
    assert not report.wrong
