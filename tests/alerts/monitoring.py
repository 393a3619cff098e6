"""A Prometheus and an Alertmanager for tests, on the loopback, with the project's own rules accelerated.

Only durations are changed: `for`, windows, offsets and intervals are all divided by one number. A webhook receives and
keeps the notifications.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import trio
import yaml

from router_trio.embedded import HOST, reserve_port
from tests.alerts.tools import ALERTMANAGER, RULES, load, tool

FASTER = 40
"""Factor of the acceleration: a minute of the rules is a second and a half here."""

SCRAPE_EVERY = "500ms"
"""Timeout of a scrape, as long: on a busy machine a shorter one would take a healthy router for an absent one."""

READY_WITHIN = 20.0
MAX_READ = 64 * 1024
_POLL_INTERVAL = 0.05
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class Notification:
    """An alert of a notification: `at` is when it arrived, on the clock of `time.monotonic`."""

    receiver: str
    status: str
    alert: str
    labels: dict[str, str]
    at: float


@dataclass
class Webhook:
    """A receiver of notifications, with all that arrived so far."""

    url: str
    heard: list[Notification] = field(default_factory=list)

    async def hears(self, alert: str, status: str = "firing", *, within: float, **labels: str) -> Notification:
        """Wait for a notification with these labels. Raises `trio.TooSlowError`, with what arrived instead."""
        deadline = trio.current_time() + within
        while True:
            for one in self.heard:
                if (one.alert, one.status) == (alert, status) and labels.items() <= one.labels.items():
                    return one
            if trio.current_time() > deadline:
                notifications = [(one.alert, one.status) for one in self.heard]
                raise trio.TooSlowError(f"no {alert} ({status}) within {within:g} s, only {notifications}")
            await trio.sleep(_POLL_INTERVAL)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve the requests of one connection, for `trio.serve_listeners`."""
        async with stream:
            connection = h11.Connection(h11.SERVER)
            while True:
                request = await _next(connection, stream)
                if not isinstance(request, h11.Request):
                    return
                body = bytearray()
                while isinstance(event := await _next(connection, stream), h11.Data):
                    body += event.data
                if not isinstance(event, h11.EndOfMessage):
                    return
                self._take(json.loads(bytes(body)))
                answer = connection.send(h11.Response(status_code=200, headers=[("content-length", "0")])) or b""
                await stream.send_all(answer + (connection.send(h11.EndOfMessage()) or b""))
                connection.start_next_cycle()

    def _take(self, notifications: dict[str, Any]) -> None:
        for alert in notifications["alerts"]:
            labels = alert["labels"]
            self.heard.append(
                Notification(notifications["receiver"], alert["status"], labels["alertname"], labels, time.monotonic())
            )


@dataclass(frozen=True)
class Monitoring:
    """Both programs, running, and the receiver of their notifications."""

    prometheus: str
    alertmanager: str
    webhook: Webhook

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        answer = await get(f"{self.prometheus}/api/v1/query?query={_escaped(expression)}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    async def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """Return the exemplars of the last minute, by series."""
        now = time.time()
        range_ = f"start={now - 60:.0f}&end={now + 60:.0f}"
        answer = await get(f"{self.prometheus}/api/v1/query_exemplars?query={_escaped(expression)}&{range_}")
        series: list[dict[str, Any]] = answer["data"]
        return series

    async def has(self, expression: str, *, within: float = READY_WITHIN) -> list[dict[str, Any]]:
        """Wait until a query has a result. Raises `trio.TooSlowError`."""
        with trio.fail_after(within):
            while not (result := await self.query(expression)):
                await trio.sleep(_POLL_INTERVAL)
        return result

    async def inhibited(self, alert: str, *, within: float) -> str:
        """Wait until Alertmanager has an alert and inhibits it; return the alert that inhibits it.

        Raises `trio.TooSlowError`.
        """
        with trio.fail_after(within):
            while True:
                alerts = {one["fingerprint"]: one for one in await get(f"{self.alertmanager}/api/v2/alerts")}
                for one in alerts.values():
                    for source in one["status"]["inhibitedBy"]:
                        if one["labels"]["alertname"] == alert and source in alerts:
                            name: str = alerts[source]["labels"]["alertname"]
                            return name
                await trio.sleep(_POLL_INTERVAL)


def faster(text: str) -> str:
    """Divide every duration in an expression or of a `for` by `FASTER`."""
    return re.sub(r"(?<=\[)\w+(?=\])|(?<=offset )\w+", lambda found: _divided(found[0]), text)


def fast_rules() -> dict[str, Any]:
    """Return the rules file, accelerated and otherwise unchanged."""
    content: dict[str, Any] = load(RULES)
    for group in content["groups"]:
        group["interval"] = _divided(group["interval"])
        for rule in group["rules"]:
            rule["expr"] = faster(rule["expr"])
            if "for" in rule:
                rule["for"] = _divided(rule["for"])
    return content


def fast_alertmanager(webhook: str) -> dict[str, Any]:
    """Return the example for Alertmanager, without waiting times and with the webhook as receiver."""
    content: dict[str, Any] = load(ALERTMANAGER)
    content["route"] |= {"group_wait": "100ms", "group_interval": "500ms"}
    for receiver in content["receivers"]:
        receiver["webhook_configs"] = [{"url": webhook, "send_resolved": True}]
    return content


def programs() -> tuple[str, str]:
    """Return the paths of Prometheus and Alertmanager. Skips or fails the test without them, so call it first."""
    return tool("prometheus"), tool("prometheus-alertmanager", "alertmanager")


@asynccontextmanager
async def monitoring(
    directory: Path, installed: tuple[str, str], targets: Sequence[str], *options: str
) -> AsyncIterator[Monitoring]:
    """Scrape these targets and evaluate the rules. Entered when both programs are ready; they are killed at the end.

    `directory` is for their files, `installed` is the result of `programs`, `options` are for Prometheus.
    """
    [listener] = await trio.open_tcp_listeners(0, host=HOST)
    webhook = Webhook(f"http://{HOST}:{listener.socket.getsockname()[1]}/")
    with reserve_port() as prometheus_port, reserve_port() as alertmanager_port:
        prometheus, alertmanager = f"{HOST}:{prometheus_port}", f"{HOST}:{alertmanager_port}"
        rules = _write(directory / "rules.yml", fast_rules())
        scraping = {
            "global": {"scrape_interval": SCRAPE_EVERY, "scrape_timeout": SCRAPE_EVERY},
            "rule_files": [str(rules)],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
            "scrape_configs": [{"job_name": "router", "static_configs": [{"targets": list(targets)}]}],
        }
        commands = [
            [
                installed[0],
                f"--config.file={_write(directory / 'prometheus.yml', scraping)}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address={prometheus}",
                *options,
            ],
            [
                installed[1],
                f"--config.file={_write(directory / 'alertmanager.yml', fast_alertmanager(webhook.url))}",
                f"--storage.path={directory / 'alertmanager'}",
                f"--web.listen-address={alertmanager}",
                "--cluster.listen-address=",
            ],
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, webhook.serve, [listener])
            for command in commands:
                await nursery.start(_run, command, directory / f"{Path(command[0]).name}.log")
            for address in (prometheus, alertmanager):
                await _ready(f"http://{address}/-/ready")
            try:
                yield Monitoring(f"http://{prometheus}", f"http://{alertmanager}", webhook)
            finally:
                nursery.cancel_scope.cancel()


async def get(url: str) -> Any:
    """Return the JSON at a URL of the loopback. Raises `OSError` if nothing listens there."""
    return json.loads(await _fetch(url))


async def _run(command: list[str], log: Path, task_status: trio.TaskStatus[None]) -> None:
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(command, stdout=output, stderr=subprocess.STDOUT)
        task_status.started()
        try:
            await process.wait()
            raise AssertionError(f"{command[0]} has ended:\n{_tail(log)}")
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None:
                    process.kill()
                await process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def _ready(url: str) -> None:
    with trio.fail_after(READY_WITHIN):
        while True:
            try:
                await _fetch(url)
            except (OSError, trio.BrokenResourceError, AssertionError):
                await trio.sleep(_POLL_INTERVAL)
            else:
                return


async def _fetch(url: str) -> bytes:
    address, _, path = url.removeprefix("http://").partition("/")
    host, _, port = address.partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
        head, _, body = b"".join([part async for part in stream]).partition(b"\r\n\r\n")
    assert b" 200 " in head.partition(b"\r\n")[0], f"{url}: {head.decode()}"
    return body


async def _next(connection: h11.Connection, stream: trio.SocketStream) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        try:
            connection.receive_data(await stream.receive_some(MAX_READ))
        except trio.BrokenResourceError:
            return None
    return event


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _divided(duration: str) -> str:
    parts: list[tuple[str, str]] = re.findall(r"(\d+)(ms|[smhd])", duration)
    assert "".join(number + unit for number, unit in parts) == duration, f"not understood here: {duration}"
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    return f"{round(seconds * 1000 / FASTER)}ms"


def _write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path
