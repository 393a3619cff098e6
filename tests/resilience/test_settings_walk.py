"""A route is reloaded from each of its settings to each other one, under load. See `settings_walk`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resilience.settings_walk import OF_A_SUBJECT, SETTINGS, walk
from tests.support.server_version import needs_server

pytestmark = [pytest.mark.slow, needs_server(2, 12, lacks="message schedules")]


async def test_some_reloads_lose_double_and_overtake_nothing(tmp_path: Path) -> None:
    report = await walk(tmp_path, tuple(SETTINGS), reloads=40, fails=False)
    print(report)
    assert not report.wrong
    assert report.reloads == 40


async def test_some_reloads_of_a_route_from_a_subject_lose_double_and_overtake_nothing(tmp_path: Path) -> None:
    report = await walk(tmp_path, tuple(OF_A_SUBJECT), reloads=40, fails=False, of_a_subject=True)
    print(report)
    assert not report.wrong
    assert report.reloads == 40


async def test_a_message_that_was_never_tried_is_not_overtaken_when_the_key_changes(tmp_path: Path) -> None:
    names = ("usual", "key", "key of two subjects", "key, no handler", "no handler", "slow handler", "8 at once")
    report = await walk(tmp_path, names, seed=1, reloads=20)
    print(report)
    assert not report.wrong


async def test_reloads_between_numbers_of_partitions_double_nothing(tmp_path: Path) -> None:
    report = await walk(tmp_path, ("usual", "4 partitions", "8 partitions"), seed=5, fails=False)
    print(report)
    assert not report.wrong


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_reloads_between_all_settings_of_a_durable_lose_double_and_overtake_nothing(tmp_path: Path) -> None:
    report = await walk(tmp_path, tuple(SETTINGS), seed=1, fails=False)
    print(report)
    assert not report.wrong
    assert report.reloads + sum(report.refused.values()) >= len(SETTINGS) * (len(SETTINGS) - 1)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fails", [False, True])
async def test_reloads_between_all_settings_of_a_subject_lose_double_and_overtake_nothing(
    fails: bool, tmp_path: Path
) -> None:
    report = await walk(tmp_path, tuple(OF_A_SUBJECT), seed=1, fails=fails, of_a_subject=True)
    print(report)
    assert not report.wrong
    assert report.reloads >= len(OF_A_SUBJECT) * (len(OF_A_SUBJECT) - 1)


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_reloads_lose_and_double_no_message_that_has_failed(tmp_path: Path) -> None:
    """With another `key`, messages that waited for a failed one no longer do, so later ones may overtake them."""
    report = await walk(tmp_path, tuple(SETTINGS), reloads=100)
    print(report)
    assert not [found for found in report.wrong if "is stored behind" not in found]
