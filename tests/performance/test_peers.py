"""The contestants of the benchmarks, and the report about them."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.performance.benchmarks import contestants, environment, report
from tests.performance.benchmarks.contestants import CORE, HANDLED, STREAM, Contestant, taking_part
from tests.performance.benchmarks.measure import Turns
from tests.performance.benchmarks.section import COST, LOST, RATE, Section


def section(**rates: float) -> Section:
    """Return a section with one turn of 3 lost messages for each contestant, and another one with 2."""
    turns = {
        name: Turns([{"rate": rate, "cpu_us": 1.0, "lost": lost} for lost in (3, 2)]) for name, rate in rates.items()
    }
    return Section("core", "Core", "", (RATE, COST, LOST), turns)


@pytest.mark.parametrize("kind", [CORE, HANDLED, STREAM])
def test_a_contestant_that_is_not_built_is_left_out(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.touch()
    some = {path.name: Contestant(path.name, frozenset({kind}), lambda _: [], needs=path) for path in (there, absent)}
    monkeypatch.setattr(contestants, "CONTESTANTS", some)
    assert [one.name for one in taking_part(kind, essential=False)] == ["there"]


def test_without_go_its_programs_are_left_out_with_a_notice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "GO_PEERS", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    names = ("nats_go", "orbit_group", "watermill")
    assert environment.build_go_peers() == [f"{name}: there is no Go here" for name in names]


def test_ratios_are_to_each_client_and_to_the_limit() -> None:
    head, _, first, *_ = report.table(section(router_trio=300, nats_py=100, nats_go=600, raw=400)).splitlines()
    assert [cell.strip() for cell in head.split("|")][-5:-1] == ["lost", "x nats_py", "x nats_go", "x raw"]
    assert [cell.strip() for cell in first.split("|")][-5:-1] == ["5", "3.00", "0.50", "0.75"]


def test_a_row_of_the_page_is_compared_with_the_contestants_that_it_names() -> None:
    turns = section(**{"router_trio, 1": 200, "router_trio, 1,000": 150, "nats_go, 1,000": 300}).turns
    page = report.page([Section("routes", "Routes", "", (RATE, COST, LOST), turns)], {})
    (row,) = [line for line in page.splitlines() if line.startswith("| core to core, 1,000 routes")]
    assert [cell.strip() for cell in row.split("|")][-3:-1] == ["0.75", "0.50"]


def test_a_contestant_that_did_not_take_part_has_no_column() -> None:
    assert "nats_go" not in report.table(section(router_trio=300, nats_py=100))


@pytest.mark.parametrize(
    ("configured", "expected"), [("'--enable-optimizations' '--with-lto'", "with"), ("", "without")]
)
def test_the_page_reports_whether_python_was_built_with_pgo_and_warns_if_not(
    configured: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/opt/python")  # otherwise Debian describes its own
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: configured)
    page = report.page([], {"Python": environment.python_build()})
    assert f", {expected} PGO\n" in page
    assert ("This Python was built without PGO" in page) == (expected == "without")
