"""Stage one incident, wait for its alert, and run the commands that the alert has for the person on call."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import yaml

from router_trio.embedded import HOST, reserve_port
from tests.alerts.monitoring import FASTER, fast_rules, get
from tests.alerts.tools import rules
from tests.drill.incidents import COMMAND_WITHIN, HEAD, USERS, Incident, Stage, traffic
from tests.support.command import environment, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import nats_server

INSTALLED_AT = "/etc/router-trio/router.toml"
"""The configuration in the commands of alerts."""

SCRAPE_EVERY = "1s"
"""Timeout of a scrape as well: on a busy machine a shorter one would take a healthy router for an absent one."""

STARTS_WITHIN = 60.0
HEALTHY_SECONDS = 4.0
FIRES_WITHIN = 120.0
UNSEEN_SECONDS = 12.0
"""Seconds after which the commands are run if there is no Prometheus: some reasons appear after 8 s."""


@dataclass(frozen=True)
class Fired:
    """An alert as its notification has it."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass
class Outcome:
    """The alert, the commands and the outputs of an incident, with their times. `also` are other alerts by then."""

    incident: Incident
    fired: Fired
    also: Sequence[str]
    seen: bool
    """True if Prometheus fired the alert."""
    fired_after: float
    outputs: list[tuple[str, str]] = field(default_factory=list)
    commands_took: float = 0.0
    found_in: int | None = None
    """The number of the command whose output has the cause; None if none has."""

    def text(self) -> str:
        """Return everything as the person reads it, and then the answer."""
        name, annotations = self.fired.name, self.fired.annotations
        when = (
            f"fired after {self.fired_after:.0f} s (durations divided by {FASTER})"
            if self.seen
            else "not seen: no Prometheus"
        )
        labels = ", ".join(f"{key}={value}" for key, value in sorted(self.fired.labels.items()) if key != "alertname")
        lines = [f"{'=' * 20} {self.incident.name} {'=' * 20}", f"ALERT {name}   [{when}]", f"  {labels}"]
        lines += [f"  {annotations['summary']}", f"  {annotations['description']}"]
        lines += [f"  log: {annotations['log_code']}", f"  runbook: docs/runbooks/{name}.md"]
        lines += [f"  firing too: {', '.join(self.also)}"] if self.also else []
        for command, output in self.outputs:
            lines += ["", f"$ {command}", output.rstrip() or "(no output)"]
        found = "NOT FOUND" if self.found_in is None else f"shown by command {self.found_in}"
        lines += ["", f"cause: {self.incident.answer}", f"  {found}; all commands took {self.commands_took:.1f} s", ""]
        return "\n".join(lines)


class Prometheus:
    """A running Prometheus with the rules."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def alerts(self, instance: str) -> list[Fired]:
        """Return the alerts of an instance that fire now."""
        found = await get(f"{self._url}/api/v1/alerts")
        return [
            Fired(one["labels"]["alertname"], one["labels"], one["annotations"])
            for one in found["data"]["alerts"]
            if one["state"] == "firing" and one["labels"].get("instance") == instance
        ]


def drill_rules() -> dict[str, Any]:
    """Return the rules of the project with shorter durations, also those that an alert compares with."""
    content = fast_rules()
    for rule in (rule for group in content["groups"] for rule in group["rules"]):
        if rule.get("alert") in ("RouterRouteBehind", "RouterMessageRetriedForLong"):
            rule["expr"] = re.sub(
                r"(?<=[>-] )\d+$", lambda found: f"{float(found[0]) / FASTER:g}", rule["expr"], flags=re.M
            )
    return content


@asynccontextmanager
async def prometheus(program: str, folder: Path, targets: Sequence[str]) -> AsyncIterator[Prometheus]:
    """Run Prometheus with the rules; entered when it answers."""
    (folder / "rules.yml").write_text(yaml.safe_dump(drill_rules()))
    scraping = {
        "global": {"scrape_interval": SCRAPE_EVERY, "scrape_timeout": SCRAPE_EVERY},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "router", "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(scraping))
    with reserve_port() as port:
        address = f"{HOST}:{port}"
        options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
        async with running(*options, cwd=folder, python=[program]):
            await eventually(lambda: _answers(address), within=30)
            yield Prometheus(f"http://{address}")


async def _answers(address: str) -> bool:
    try:
        await get(f"http://{address}/api/v1/status/buildinfo")
    except (OSError, trio.BrokenResourceError, AssertionError):
        return False
    return True


async def stage(incident: Incident, folder: Path, listen: str, seen_by: Prometheus | None) -> Outcome:
    """Stage an incident and return what was seen. Raises `trio.TooSlowError` if its alert does not fire."""
    async with AsyncExitStack() as stack:
        users = USERS.format(permissions="")
        server = await stack.enter_async_context(nats_server(folder, config=users, name="main"))
        text = HEAD.format(listen=listen, url=server.url)
        source = server
        if "{source}" in incident.routes:
            source = await stack.enter_async_context(nats_server(folder, config=users, name="source"))
        with_source = incident.routes.replace("{source}", source.url.replace("://", "://router:router@"))
        (folder / "router.toml").write_text(text + with_source)
        for name, module in incident.modules.items():
            (folder / f"{name}.py").write_text(module)
        client = await stack.enter_async_context(connect(server.url, user="admin", password="admin"))
        streams = JetStream(client)
        for name, subject in (("ORDERS", "orders.*"), ("COPIES", "copies.*"), ("DEAD", "dead.*")):
            await streams.create_stream(name, [subject])
        router = await stack.enter_async_context(running("run", "router.toml", cwd=folder))
        try:
            with trio.fail_after(STARTS_WITHIN):
                while not router.logged("ROUTER_STARTED"):
                    await trio.sleep(0.1)
        except trio.TooSlowError:
            raise trio.TooSlowError(f"the router did not start:\n{router.output}{router.errors}") from None
        here = Stage(folder, listen, server, client, router)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(traffic, incident, source.url)
        await trio.sleep(HEALTHY_SECONDS)
        began = trio.current_time()
        await incident.goes_wrong(here)
        fired, also = await _alert(incident, listen, seen_by)
        outcome = Outcome(incident, fired, also, seen_by is not None, trio.current_time() - began)
        began = trio.current_time()
        for command in fired.annotations["commands"].splitlines():
            outcome.outputs.append((command, await _run(command, folder)))
            if outcome.found_in is None and re.search(incident.cause, outcome.outputs[-1][1]):
                outcome.found_in = len(outcome.outputs)
        outcome.commands_took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    return outcome


async def _alert(incident: Incident, listen: str, seen_by: Prometheus | None) -> tuple[Fired, list[str]]:
    """Wait for the alert of an incident. Without a Prometheus it is made from the rules, after a while."""
    if seen_by is None:
        await trio.sleep(UNSEEN_SECONDS)
        labels = {"job": "router", "instance": listen, **incident.labels}
        [rule] = [rule for rule in rules("alert") if rule["alert"] == incident.alert]
        return Fired(incident.alert, labels | rule["labels"], filled_in(rule["annotations"], labels)), []
    others: set[str] = set()
    with trio.move_on_after(FIRES_WITHIN):
        while True:
            alerts = await seen_by.alerts(listen)
            others = {one.name for one in alerts}
            for one in alerts:
                if one.name == incident.alert:
                    return one, sorted(others - {one.name})
            await trio.sleep(0.1)
    raise trio.TooSlowError(f"{incident.alert} did not fire within {FIRES_WITHIN:g} s, only {sorted(others)}")


def filled_in(annotations: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, str]:
    """Return annotations with these labels. Other parts of a template stay as they are."""
    return {
        name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels.get(found[1], ""), text)
        for name, text in annotations.items()
    }


async def _run(command: str, folder: Path) -> str:
    """Return the output of a command, typed in a shell on the host of the router."""
    typed = command.replace(INSTALLED_AT, shlex.quote(str(folder / "router.toml")))
    typed = re.sub(r"^router-trio ", f"{shlex.quote(sys.executable)} -m router_trio ", typed)
    # Pages of the default address are those of this router here.
    given = {**environment(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with trio.move_on_after(COMMAND_WITHIN):
        done = await trio.run_process(
            ["bash", "-c", typed], cwd=folder, env=given, check=False, capture_stdout=True, stderr=subprocess.STDOUT
        )
        return done.stdout.decode("utf-8", "replace").replace(str(folder), "/etc/router-trio")
    return f"(no end within {COMMAND_WITHIN:g} s)"
