"""The drill: an incident is staged, and the commands of its alert show the cause. `make drill` stages all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from router_trio.embedded import HOST, reserve_port
from tests.alerts.tools import rules, tool
from tests.drill import staging
from tests.drill.__main__ import drill
from tests.drill.incidents import INCIDENTS, Incident
from tests.drill.staging import stage
from tests.support.server_version import needs_server

ALERTS = {rule["alert"]: rule for rule in rules("alert")}
QUICK = ("refused reload", "paused")


def test_there_are_ten_incidents_and_each_has_an_alert_of_its_own() -> None:
    assert len(INCIDENTS) == 10
    assert len({one.alert for one in INCIDENTS}) == 10
    assert {one.alert for one in INCIDENTS} <= set(ALERTS)


@needs_server(2, 11, lacks="pause of consumers")
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="no curl and jq: apt-get install curl jq")
@pytest.mark.parametrize("incident", [one for one in INCIDENTS if one.name in QUICK], ids=lambda one: one.name)
async def test_the_commands_of_an_alert_show_the_cause(
    incident: Incident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "HEALTHY_SECONDS", 0.5)
    monkeypatch.setattr(staging, "UNSEEN_SECONDS", 0.5)
    with reserve_port() as port:
        outcome = await stage(incident, tmp_path, f"{HOST}:{port}", None)
    assert outcome.found_in is not None, outcome.text()
    assert "not seen: no Prometheus" in outcome.text()


@pytest.mark.nightly
@pytest.mark.timeout(900)
@needs_server(2, 11, lacks="pause of consumers")
async def test_each_alert_fires_and_its_commands_show_the_cause() -> None:
    tool("prometheus")
    assert await drill(list(INCIDENTS), at_a_time=3) == []
