"""The benchmark of faults: its counting, and a small run of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.performance.benchmarks.contestants import CONTESTANTS, CORE, STREAM
from tests.performance.benchmarks.numbered import SUBJECTS, Verdict, frames, verdict
from tests.performance.benchmarks.reported_losses import reported_losses
from tests.performance.benchmarks.setting import setting
from tests.performance.benchmarks.workloads.faults import SMALL, fault_turn


def test_messages_that_arrive_once_and_in_order_are_no_fault() -> None:
    assert verdict(250, range(250)) == Verdict(lost=0, doubled=0, out_of_order=0)


def test_a_message_that_does_not_arrive_is_lost() -> None:
    assert verdict(10, [0, 1, 2, 3, 4, 6, 7, 9]) == Verdict(lost=2, doubled=0, out_of_order=0)


def test_each_extra_copy_counts_as_duplicated_and_not_as_out_of_order() -> None:
    again = [0, SUBJECTS, 0, SUBJECTS, 0, *range(1, SUBJECTS)]
    assert verdict(SUBJECTS + 1, again) == Verdict(lost=0, doubled=3, out_of_order=0)


def test_order_is_judged_within_each_subject() -> None:
    behind = 3 * SUBJECTS
    assert verdict(2, [1, 0]) == Verdict(lost=0, doubled=0, out_of_order=0)
    found = verdict(behind + 1, [behind, 0, SUBJECTS, *set(range(behind)) - {0, SUBJECTS, 2 * SUBJECTS}])
    assert found == Verdict(lost=1, doubled=0, out_of_order=2)


def test_a_message_carries_its_number_and_its_subject() -> None:
    assert frames(SUBJECTS + 7, SUBJECTS + 8).startswith(b"PUB in.007 128\r\n#0000107;xxx")


def test_lines_about_failed_messages_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("nats: encountered error\nnot sent: TimeoutError()\nnot sent: TimeoutError()\n")
    assert reported_losses("nats_py", log, None) == 2
    log.write_text("Traceback ...\n")
    assert reported_losses("nats_py", log, None) == 0
    assert reported_losses("nats_py", log, 1) == 1
    assert reported_losses("router_trio", log, 1) == 1


@pytest.mark.nightly
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", [CORE, STREAM])
async def test_a_small_run(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with setting(tmp_path, quick=True, say=print) as given:
        found = {name: await fault_turn(given, CONTESTANTS[name], kind, SMALL) for name in ("router_trio", "nats_py")}
    with capsys.disabled():
        print(f"\nfaults, {kind}: {found}")
    ours = found["router_trio"]
    assert set(found["nats_py"]) == set(ours)
    if kind == STREAM:
        assert {name: value for name, value in ours.items() if value} == {}
