"""Run a Prometheus that scrapes one router every second, and query it."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import trio

from router_trio.embedded import HOST, reserve_port

SCRAPE_INTERVAL = 1
READY_WITHIN = 20.0
ANSWERS_WITHIN = 20.0

CONFIGURATION = """
global: {{ scrape_interval: {interval}s, scrape_timeout: {interval}s }}
scrape_configs:
  - job_name: router-trio
    static_configs:
      - targets: ["{target}"]
        labels: {{ instance: router-1 }}
"""


@dataclass(frozen=True)
class Series:
    """One series of a result: its labels, and its points in order of time (Unix seconds). A value may be NaN."""

    labels: Mapping[str, str]
    times: list[float]
    values: list[float]

    @property
    def has_data(self) -> bool:
        """Return True if any value is a number."""
        return any(value == value for value in self.values)


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def over(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Evaluate a query at each step. Blocks. Raises `ValueError` if Prometheus refuses it."""
        arguments = {"query": expression, "start": start, "end": end, "step": step}
        return [_series(one, one["values"]) for one in self._ask("query_range", arguments)]

    def at(self, expression: str, time: float) -> list[Series]:
        """Evaluate a query once. Blocks. Raises `ValueError` if Prometheus refuses it."""
        return [_series(one, [one["value"]]) for one in self._ask("query", {"query": expression, "time": time})]

    def _ask(self, method: str, arguments: Mapping[str, object]) -> list[dict[str, Any]]:
        url = f"{self.url}/api/v1/{method}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWERS_WITHIN) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"Prometheus refuses {arguments['query']!r}: {error.read().decode()}") from None
        return found


def _series(one: Mapping[str, Any], points: list[tuple[float, str]]) -> Series:
    labels = {name: value for name, value in one["metric"].items() if name != "__name__"}
    return Series(labels, [time for time, _ in points], [_number(text) for _, text in points])


def _number(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else nan


@asynccontextmanager
async def prometheus(directory: Path, target: str) -> AsyncIterator[Prometheus]:
    """Run a Prometheus that scrapes `target` (host:port) and keeps its data below `directory`.

    Raises `FileNotFoundError` with the package to install if there is no binary, `trio.TooSlowError` if it does not
    become ready within `READY_WITHIN` seconds.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise FileNotFoundError("no prometheus in PATH: apt-get install prometheus")
    configuration = directory / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(interval=SCRAPE_INTERVAL, target=target), encoding="utf-8")
    with reserve_port() as port, (directory / "prometheus.log").open("wb") as log:
        command = [
            binary,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address={HOST}:{port}",
        ]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            with trio.fail_after(READY_WITHIN):
                await _ready(f"http://{HOST}:{port}/-/ready", process)
            yield Prometheus(f"http://{HOST}:{port}")
        finally:
            with trio.CancelScope(shield=True):  # a killed process ends at once
                process.kill()
                await process.wait()


async def _ready(url: str, process: trio.Process) -> None:
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"prometheus ended with status {process.returncode}: see prometheus.log")
        try:
            await trio.to_thread.run_sync(_get, url)
        except OSError:
            await trio.sleep(0.1)
        else:
            return


def _get(url: str) -> None:
    with urllib.request.urlopen(url, timeout=1):
        pass
