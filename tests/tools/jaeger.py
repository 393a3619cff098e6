"""A real Jaeger in one process: it receives spans by OTLP over HTTP, and is queried by its API."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trio

from router_trio.embedded import HOST, reserve_port
from tests.support.eventually import eventually

READY_WITHIN = 60.0
STORED_WITHIN = 30.0
_PORTS = {
    "--collector.otlp.http.host-port": "otlp",
    "--query.http-server.host-port": "query",
    "--admin.http.host-port": "admin",
    "--collector.otlp.grpc.host-port": "otlp-grpc",
    "--collector.grpc-server.host-port": "collector-grpc",
    "--collector.http-server.host-port": "collector",
    "--query.grpc-server.host-port": "query-grpc",
}


@dataclass(frozen=True)
class JaegerSpan:
    """A span as the API returns it. Times are microseconds since 1970."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    begin: int
    end: int
    tags: dict[str, Any]
    events: list[str]
    event_times: list[int]
    warnings: list[str]


class Jaeger:
    """A running Jaeger. `endpoint` is where spans are sent."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.endpoint = f"http://{HOST}:{ports['otlp']}"
        self._query = ports["query"]

    async def trace(self, service: str, operation: str, spans: int) -> list[JaegerSpan]:
        """Wait until there is one trace with such a span, and with `spans` spans; return them in the order of their
        start.
        """
        asked = urlencode({"service": service, "operation": operation, "limit": 20})
        found: list[list[JaegerSpan]] = []

        async def complete() -> bool:
            found[:] = [_spans(one) for one in (await self.get(f"/api/traces?{asked}"))["data"]]
            return [len(one) for one in found] == [spans]

        await eventually(complete, STORED_WITHIN, lambda: f"not one trace of {spans} spans: {found}")
        return found[0]

    async def services(self) -> list[str]:
        """Return the services that have sent spans."""
        return sorted((await self.get("/api/services"))["data"] or ())

    async def get(self, path: str) -> dict[str, Any]:
        """Return the answer of the API. Raises `OSError` if nothing listens."""
        async with await trio.open_tcp_stream(HOST, self._query) as stream:
            await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
            answer = b"".join([part async for part in stream])
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], answer
        shown: dict[str, Any] = json.loads(body)
        return shown


@asynccontextmanager
async def jaeger(program: Path, tmp_path: Path) -> AsyncIterator[Jaeger]:
    """Run a Jaeger that keeps its spans in memory; its log is in `tmp_path`."""
    with ExitStack() as reserved, (tmp_path / "jaeger.log").open("wb") as log:
        ports = {name: reserved.enter_context(reserve_port()) for name in _PORTS.values()}
        command = [str(program), *(f"{option}={HOST}:{ports[name]}" for option, name in _PORTS.items())]
        environment = os.environ | {"SPAN_STORAGE_TYPE": "memory"}
        async with trio.open_nursery() as nursery:
            # Killed at the end: its data is not needed any more.
            run = partial(trio.run_process, command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            process: trio.Process = await nursery.start(partial(run, deliver_cancel=_kill, check=False))
            running = Jaeger(ports)

            async def ready() -> bool:
                assert process.returncode is None, (tmp_path / "jaeger.log").read_text()[-2000:]
                try:
                    await running.services()
                except (OSError, AssertionError):
                    return False
                return True

            await eventually(ready, READY_WITHIN)
            yield running
            nursery.cancel_scope.cancel()


async def _kill(process: trio.Process) -> None:
    process.kill()


def _spans(trace: dict[str, Any]) -> list[JaegerSpan]:
    spans = []
    for one in trace["spans"]:
        tags = {tag["key"]: tag["value"] for tag in one["tags"]}
        logs = [{field["key"]: field["value"] for field in log["fields"]} for log in one["logs"]]
        parents = [reference["spanID"] for reference in one["references"] if reference["refType"] == "CHILD_OF"]
        spans.append(
            JaegerSpan(
                name=one["operationName"],
                service=trace["processes"][one["processID"]]["serviceName"],
                trace_id=one["traceID"],
                span_id=one["spanID"],
                parent_id=parents[0] if parents else "",
                kind=tags.get("span.kind", "internal"),
                begin=one["startTime"],
                end=one["startTime"] + one["duration"],
                tags=tags,
                events=[log["event"] for log in logs],
                event_times=[log["timestamp"] for log in one["logs"]],
                warnings=one["warnings"] or [],
            )
        )
    return sorted(spans, key=lambda span: span.begin)
