"""The example for Alertmanager: valid, with each alert sent to its receiver, and silence only where intended."""

from __future__ import annotations

import re

import pytest

from tests.alerts.tools import ALERTMANAGER, load, rules, run

ALERTS = {rule["alert"]: rule for rule in rules("alert")}
NEVER_SILENT = {
    "RouterAbsent",
    "RouterMessagesDropped",
    "RouterLedgerUnbalanced",
    "RouterRouteLedgerUnbalanced",
    "RouterPartitionsUnled",
    "RouterErrorBudgetBurnFast",
    "RouterMessagesDeadLettered",
    "RouterDeadLettersNotStored",
}


def test_the_example_is_valid() -> None:
    checked = run("amtool", "check-config", ALERTMANAGER)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_sent_to_its_receiver(alert: str) -> None:
    severity = ALERTS[alert]["labels"]["severity"]
    receiver = {"critical": "pager", "warning": "tickets"}[severity]
    routed = run(
        "amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"--verify.receivers={receiver}",
        f"alertname={alert}", f"severity={severity}", "job=router", "instance=a:9001", "connection=main",
    )  # fmt: skip
    assert routed.returncode == 0, routed.stdout + routed.stderr


def test_inhibition_names_alerts_that_exist() -> None:
    named = set()
    for rule in load(ALERTMANAGER)["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            named |= set(re.findall(r"\bRouter\w+", matcher))
    assert named <= set(ALERTS)


def test_a_source_never_silences_an_alert_that_must_not_be_silenced() -> None:
    for rule in load(ALERTMANAGER)["inhibit_rules"]:
        for alert in NEVER_SILENT:
            labels = {"alertname": alert, "severity": ALERTS[alert]["labels"]["severity"]}
            assert not all(_matches(matcher, labels) for matcher in rule["target_matchers"]), (alert, rule)


def test_the_alerts_that_a_lost_connection_silences() -> None:
    silenced = set()
    for rule in load(ALERTMANAGER)["inhibit_rules"]:
        if rule["source_matchers"] == ["alertname = RouterConnectionDown"]:
            silenced |= {
                alert
                for alert in ALERTS
                if all(_matches(matcher, {"alertname": alert}) for matcher in rule["target_matchers"])
            }
    assert silenced == {
        "RouterReconnectionExhausted",
        "RouterReconnectFailureRatioHigh",
        "RouterConnectionFlapping",
        "RouterPublishFailureRatioHigh",
        "RouterPendingQueueHigh",
        "RouterAckFailures",
        "RouterRouteNotRunning",
        "RouterRouteStalled",
        "RouterMessageRetriedForLong",
        "RouterRouteBehind",
        "RouterPartitionsUnfair",
    }


def _matches(matcher: str, labels: dict[str, str]) -> bool:
    """Apply Alertmanager's matchers, as far as the example uses them."""
    name, operator, value = re.fullmatch(r'(\w+) (=~|!=|=) "?([^"]+)"?', matcher).groups()  # type: ignore[union-attr]
    own = labels.get(name, "")
    if operator == "=~":
        return re.fullmatch(value, own) is not None
    return (own == value) is (operator == "=")
