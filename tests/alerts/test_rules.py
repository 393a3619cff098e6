"""The alerts: each fires exactly when it should, reads existing series, and leads to a runbook.

The unit tests of the rules are tested as well: if any part is cut out of an alert, its tests must fail.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.queries import OF_THE_SENDER
from router_trio.errors import codes, reasons
from tests.alerts.promql import TARGET, Series, mutants, template_labels
from tests.alerts.tools import ROOT, RULE_TESTS, RULES, load, rules, run
from tests.drill.staging import filled_in

RUNBOOKS = ROOT / "docs" / "runbooks"
RUNBOOK_URL = "https://github.com/router-trio/router-trio/blob/main/docs/runbooks/"
ALERTS = {rule["alert"]: rule for rule in rules("alert")}
EVERYDAY = "everyday"
"""The test of all alerts together."""

BEGIN_LATER = {"router_messages_given_up_total"}
"""Metrics whose series begin with the first event."""

pytestmark = pytest.mark.timeout(300)
"""promtool evaluates every rule four times a minute over hours: on a busy machine that takes a while."""


@pytest.fixture(scope="module")
def contract() -> Any:
    """Return the contract that the command prints."""
    told = subprocess.run(
        [sys.executable, "-m", "router_trio", "contract", "--json"], capture_output=True, check=True, cwd=ROOT
    )
    return json.loads(told.stdout)


@pytest.fixture(scope="module")
def series(contract: Any) -> Series:
    """Return the router's metrics and the results of the recording rules."""
    known = Series(contract["metrics"])
    for rule in rules("record"):
        known.add(rule["record"], known.labels(rule["expr"]) | set(rule.get("labels", ())))
    return known


# --- they fire when they should ---


def test_promtool_finds_no_fault() -> None:
    checked = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_reasons_that_burn_no_budget_are_those_of_the_table() -> None:
    matchers = re.findall(r'last_failed_total:sum\{reason([!=])~"([^"]+)"\}', RULES.read_text())
    assert [sign for sign, _ in matchers] == ["=", "!"]
    known = {*reasons.TABLE, *map(reasons.of_code, codes.ALL)}
    for _, names in matchers:
        assert {name for name in known if re.fullmatch(names, name)} == reasons.OF_THE_SENDER
        assert f'reason=~"{names}"' == OF_THE_SENDER


def test_every_alert_has_tests_of_its_own() -> None:
    assert {path.stem for path in RULE_TESTS} == {*ALERTS, EVERYDAY}


@pytest.mark.parametrize("alert", ALERTS)
def test_promtool_runs(alert: str, tmp_path: Path) -> None:
    tested = run("promtool", "test", "rules", _test_of(alert, ALERTS[alert], tmp_path))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_promtool_runs_all_of_them_on_everyday_series() -> None:
    tested = run("promtool", "test", "rules", ROOT / f"tests/alerts/rules/{EVERYDAY}.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("alert", ALERTS)
def test_cutting_any_part_out_of_an_alert_fails_its_tests(alert: str, tmp_path: Path) -> None:
    rule = ALERTS[alert]
    changed = [{**rule, "expr": expression} for expression in mutants(rule["expr"])]
    changed.append({**rule, "expr": "vector(0) > 0"})
    if "for" in rule:
        changed.append({name: value for name, value in rule.items() if name != "for"})
    for mutant in changed:
        tested = run("promtool", "test", "rules", _test_of(alert, mutant, tmp_path))
        # Not just any failure: an alert fired that was not expected, or an expected one did not.
        noticed = "got:" in tested.stdout + tested.stderr
        assert noticed, f"no test of {alert} notices this change:\n{yaml.safe_dump(mutant)}"
    untouched = run("promtool", "test", "rules", _test_of(alert, rule, tmp_path))
    assert untouched.returncode == 0, "it fails unchanged: " + untouched.stderr


def _test_of(alert: str, rule: dict[str, Any], directory: Path) -> Path:
    """Write the tests of an alert, and a rules file with this rule in its place and the recordings that it needs."""
    groups = load(RULES)["groups"]
    needed = _recordings(_asked_by(ALERTS[alert]))
    for group in groups:
        group["rules"] = [
            rule if one.get("alert") == alert else one
            for one in group["rules"]
            if one.get("alert") == alert or one.get("record") in needed
        ]
    (directory / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    path = directory / "test.yml"
    tests = load(ROOT / "tests/alerts/rules" / f"{alert}.yml")
    for group in tests["tests"]:
        for at in group.get("alert_rule_test", ()):
            for expected in at["exp_alerts"]:
                # The commands are those of the rule, with the labels of the alert.
                given = {"commands": rule["annotations"]["commands"]}
                expected["exp_annotations"] |= filled_in(given, expected["exp_labels"])
    path.write_text(yaml.safe_dump({**tests, "rule_files": ["rules.yml"]}))
    return path


def _asked_by(alert: dict[str, Any]) -> str:
    """Return the expressions of an alert: its own, and the queries in its annotations."""
    return " ".join((alert["expr"], *alert["annotations"].values()))


def _recordings(expression: str) -> set[str]:
    """Return the recordings that an expression reads, and those that they read."""
    needed: set[str] = set()
    for rule in rules("record"):
        if rule["record"] not in needed and _asks_for(rule["record"], expression):
            needed |= {rule["record"]}.union(
                *(_recordings(one["expr"]) for one in rules("record") if one["record"] == rule["record"])
            )
    return needed


def _asks_for(name: str, expression: str) -> bool:
    return re.search(rf"(?<![\w:]){re.escape(name)}(?![\w:])", expression) is not None


# --- they read series that exist ---


@pytest.mark.parametrize("alert", ALERTS)
def test_metrics_and_labels_exist(alert: str, series: Series) -> None:
    rule = ALERTS[alert]
    labels = series.labels(rule["expr"]) | set(rule["labels"])
    for name, text in rule["annotations"].items():
        assert template_labels(text) <= labels, f"{name} shows a label that the alert doesn't have"


def test_every_recording_is_used() -> None:
    """It is used by an alert or by another recording."""
    asked = " ".join((*map(_asked_by, rules("alert")), *(rule["expr"] for rule in rules("record"))))
    for name in {rule["record"] for rule in rules("record")}:
        assert _asks_for(name, asked), f"nobody asks for {name}"


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_the_tests_use_series_that_exist(path: Path, series: Series) -> None:
    for group in load(path)["tests"]:
        for given in group.get("input_series", ()):
            labels = series.labels(given["series"])
            assert set(re.findall(r'(\w+)="', given["series"])) == labels


def test_a_scrape_in_normal_operation_has_every_series_that_alerts_read() -> None:
    days = {group["name"]: group for group in load(ROOT / "tests/alerts/rules" / f"{EVERYDAY}.yml")["tests"]}
    asked = set()
    for rule in (*rules("alert"), *rules("record")):
        asked |= set(re.findall(r"(?<![\w:])(?:router_\w+|up)(?![\w:(])", rule["expr"]))
    for day in ("a healthy router", "an idle router", "an idle router with a past", "a restart"):
        given = {one["series"].partition("{")[0] for one in days[day]["input_series"]}
        assert asked - given <= (BEGIN_LATER if day in ("a healthy router", "an idle router") else set())


@pytest.mark.parametrize("alert", ALERTS)
def test_log_codes_exist(alert: str, contract: Any) -> None:
    codes = {log["code"] for log in contract["logs"]}
    assert set(ALERTS[alert]["annotations"]["log_code"].split("|")) <= codes


# --- they help ---


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_names_what_is_wrong_how_bad_it_is_and_its_runbook(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "commands", "log_code", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"{RUNBOOK_URL}{alert}.md"


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_is_about_its_alert(alert: str, contract: Any, series: Series) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    rule = ALERTS[alert]
    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["First", "Symptoms", "Queries", "Cause", "Cure"]
    assert f"**{rule['labels']['severity']}**" in text
    for code in rule["annotations"]["log_code"].split("|"):
        assert f"`{code}`" in text
    for query in _queries(text):
        series.labels(query)
    known = {log["code"] for log in contract["logs"]}
    assert set(re.findall(r"`((?:NATS|ROUTER|ROUTE)_[A-Z_]+)`", text)) <= known
    assert set(re.findall(r"\]\((Router\w+)\.md\)", text)) <= set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_begins_with_the_commands_of_its_alert(alert: str) -> None:
    """The page has the names of the labels where the alert has their values."""
    [first] = re.findall(
        r"^## First\n\n```sh\n(.*?)\n```$", (RUNBOOKS / f"{alert}.md").read_text(), re.DOTALL | re.MULTILINE
    )
    names = {name: name.upper() for name in ("instance", "connection", "route")}
    assert filled_in(ALERTS[alert]["annotations"], names)["commands"] == first
    for command in first.splitlines():
        assert command.startswith(("router-trio ", "curl "))
        assert not re.search(r"[^\x20-\x7e]", command), "typed at any terminal"


def test_every_runbook_has_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("Router*.md")} == set(ALERTS)


def _queries(text: str) -> list[str]:
    """Return the PromQL of a runbook: one query per paragraph of its code blocks."""
    blocks = re.findall(r"```promql\n(.*?)```", text, re.DOTALL)
    assert blocks, "a runbook shows at least one query"
    return [query for block in blocks for query in block.strip().split("\n\n")]


def test_target_labels_stay_on_every_recording(series: Series) -> None:
    for rule in rules("record"):
        assert series.labels(rule["record"]) >= TARGET
