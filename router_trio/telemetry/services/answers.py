"""Compute the answers of a NATS service (ADR-32) from a router's state: one endpoint for each route. Pure.

The numbers are those of `/status`: all of one route are read at one moment. Answers are computed in pieces, and are
never larger than the server accepts: the endpoints that do not fit are left out, and their number is in the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from router_trio.protocol.permissions import SERVICE, SERVICES
from router_trio.states import RouteState
from router_trio.telemetry.http.status import route_ledger, route_partitions
from router_trio.telemetry.logs.redact import shown_text
from router_trio.telemetry.pieces import Pieces
from router_trio.telemetry.view import RouterView

PING, INFO, STATS = "PING", "INFO", "STATS"
"""The kinds of requests."""

MOST_BYTES = 1024 * 1024
"""Maximum size of an answer in bytes, on servers that accept larger messages."""

LEFT_OUT = "endpoints_left_out"
"""The metadata with the number of routes for which there was no room."""

_ROOM = 64
"""Bytes kept free for `LEFT_OUT`."""

_DESCRIPTION = "Routes messages between NATS subjects and streams"

_VERSION = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?[.+-]?(.*)")


@dataclass(frozen=True, slots=True)
class Instance:
    """A process as an instance of the service. `version` is that of the package, `started` is Unix time in seconds."""

    id: str
    version: str
    started: float
    metadata: Mapping[str, str]

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects of all requests to this instance: to all services, to all routers, and to this one."""
        return f"{SERVICES}.*", f"{SERVICES}.*.{SERVICE}", f"{SERVICES}.*.{SERVICE}.{self.id}"


def kind_of(subject: bytes) -> str | None:
    """Return the kind of the request with this subject; None if a service does not answer it."""
    _, _, rest = subject.partition(b".")
    kind = rest.partition(b".")[0].decode("utf-8", "replace")
    return kind if kind in (PING, INFO, STATS) else None


def answer_pieces(kind: str, instance: Instance, view: RouterView, max_payload: int) -> Pieces[bytes]:
    """Compute the answer to a request of this kind. It has at most `max_payload` bytes, unless even a PING has more."""
    head: dict[str, Any] = {
        "type": f"io.nats.micro.v1.{kind.lower()}_response",
        "name": SERVICE,
        "id": instance.id,
        "version": semantic_version(instance.version),
        "metadata": {"router": view.name, **instance.metadata},
    }
    if kind == PING:
        return _json(head)
    if kind == INFO:
        head["description"] = _DESCRIPTION
    else:
        head["started"] = _time(instance.started)
    endpoint: Callable[[RouteState], dict[str, Any]] = _info if kind == INFO else _stats
    room = min(max_payload, MOST_BYTES) - len(_json(head)) - len(b',"endpoints":[]') - _ROOM
    texts: list[bytes] = []
    routes = tuple(view.routes)
    for route in routes:
        text = _json(endpoint(route))
        room -= len(text) + 1
        if room < 0:
            break
        texts.append(text)
        yield
    if len(texts) < len(routes):
        head["metadata"][LEFT_OUT] = str(len(routes) - len(texts))
    return b'%b,"endpoints":[%b]}' % (_json(head)[:-1], b",".join(texts))


def semantic_version(version: str) -> str:
    """Return a version of a Python package as SemVer, which clients require: `1.2rc1` is `1.2.0-rc1`."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return "0.0.0"
    major, minor, patch, rest = found.groups()
    numbers = ".".join(str(int(one or 0)) for one in (major, minor, patch))
    rest = re.sub(r"[^0-9A-Za-z-]+", "-", rest).strip("-")
    return f"{numbers}-{rest}" if rest else numbers


def _info(route: RouteState) -> dict[str, Any]:
    source = {key: value if isinstance(value, str) else ", ".join(value) for key, value in route.source.items()}
    to = ", ".join(dict.fromkeys(one.template for one in route.to if not one.dead_letters))
    return {**_endpoint(route), "metadata": {"connection": route.connection, **source, "to": to}}


def _stats(route: RouteState) -> dict[str, Any]:
    durations = route.durations
    spent, count = durations.nanoseconds, sum(durations.counts)
    return {
        **_endpoint(route),
        "num_requests": route.received,
        "num_errors": sum(route.failed.values()) + route.dead_lettered,
        "last_error": _last_error(route),
        "processing_time": spent,
        "average_processing_time": spent // count if count else 0,
        "data": {
            **route_ledger(route),
            "state": "standby" if route.standby else route.state,
            **route_partitions(route),
        },
    }


def _last_error(route: RouteState) -> str:
    last = route.last_failure
    if last is None:
        return ""
    return last.reason if last.detail is None else f"{last.reason}: {shown_text(last.detail)}"


def _endpoint(route: RouteState) -> dict[str, Any]:
    source = route.source
    subject = source.get("subject") or source.get("filter") or ">"
    return {
        "name": route.name,
        "subject": subject if isinstance(subject, str) else ", ".join(subject),
        "queue_group": source.get("queue") or "",
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
