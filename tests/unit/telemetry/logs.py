"""Write events to a log in memory, and read back its lines."""

from __future__ import annotations

import json
from typing import Any

import trio
import trio.testing

from router_trio import events
from router_trio.events import Event
from router_trio.telemetry.logs.lines import Logs

QUEUED = events.PublishQueued(at=0.0, connection="main", pending_count=4)


def logs_into(sink: list[bytes], **options: Any) -> Logs:
    return Logs(**{"write": sink.append, "clock": trio.current_time} | options)


def lines(sink: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(sink).splitlines()]


async def logged(*what: Event, **options: Any) -> list[dict[str, Any]]:
    sink: list[bytes] = []
    logs = logs_into(sink, **options)
    async with logs.running():
        for event in what:
            logs.write(event)
    return lines(sink)
