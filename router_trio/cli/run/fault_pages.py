"""The `/faults` pages of `run --enable-fault-injection`: list the active faults, inject one, clear them.

Every change is emitted as an event, and so logged. Guarantees: a request body is read as JSON of a bounded size, and
each field is checked. A web page in a browser on the same machine can't inject faults, since `telemetry.hosts` rejects
requests from other sites and for other hosts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router_trio.events import Emit, FaultInjected, FaultInjectionEnabled, FaultsCleared
from router_trio.faults import OPERATIONS, Fault, Faults, Injection, close_connection, delay, error, timeout
from router_trio.faults.kinds import CLOSE_CONNECTION, DELAY, ERROR, TIMEOUT
from router_trio.settings.units import parse_duration

PATH = "/faults"
MAX_BODY = 4096
"""Largest request body, in bytes."""

_FRESH = {"cache-control": "no-store"}

_MAKE: Mapping[str, tuple[str | None, Callable[[Any], Fault]]] = {
    ERROR: ("reason", lambda reason: error(_text("reason", reason))),
    TIMEOUT: ("after", lambda after: timeout(_seconds("after", after))),
    DELAY: ("duration", lambda duration: delay(_seconds("duration", duration))),
    CLOSE_CONNECTION: (None, lambda _: close_connection()),
}


def fault_pages(faults: Faults, emit: Emit) -> Sequence[Route]:
    """Return GET, POST and DELETE of `/faults`, and DELETE of `/faults/OPERATION`. Emit a warning that they exist.

    POST takes a JSON object: `operation`; `fault` with its `reason`, `after` or `duration`; and optionally
    `probability`, `seed` and `times`. Durations are strings such as `500ms`. Each request is answered with the active
    faults.
    """
    emit(FaultInjectionEnabled(at=trio.current_time(), page=PATH))

    async def list_faults(_: Request) -> Response:
        return _active(faults)

    async def inject_fault(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refused("the body must be JSON, with the header content-type: application/json", 415)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return _refused(f"the body must have at most {MAX_BODY} bytes", 413)
        try:
            injection = _inject(faults, _fields(bytes(body)))
        except ValueError as error:
            return _refused(str(error), 400)
        emit(
            FaultInjected(
                at=trio.current_time(),
                operation=injection.operation,
                fault=str(injection.fault),
                probability=injection.probability,
                times=injection.remaining or 0,
            )
        )
        return _active(faults)

    async def clear_faults(request: Request) -> Response:
        operation: str | None = request.path_params.get("operation")
        if operation is not None and operation not in OPERATIONS:
            return _refused(f"unknown operation; the operations are {', '.join(OPERATIONS)}", 404)
        faults.clear(operation)
        emit(FaultsCleared(at=trio.current_time(), operation=operation or "all"))
        return _active(faults)

    return [
        Route(PATH, list_faults, methods=["GET"]),
        Route(PATH, inject_fault, methods=["POST"]),
        Route(PATH, clear_faults, methods=["DELETE"]),
        Route(PATH + "/{operation}", clear_faults, methods=["DELETE"]),
    ]


def _active(faults: Faults) -> Response:
    body = {"faults": [_as_json(injection) for injection in faults.active()], "struck": dict(faults.struck)}
    return JSONResponse(body, headers=_FRESH)


def _refused(why: str, code: int) -> Response:
    return JSONResponse({"error": why}, code, _FRESH)


def _as_json(injection: Injection) -> dict[str, Any]:
    return {
        "operation": injection.operation,
        "fault": str(injection.fault),
        "probability": injection.probability,
        "seed": injection.seed,
        "times": injection.remaining,
    }


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError("the body must be a JSON object, such as " + _EXAMPLE)
    return fields


_EXAMPLE = '{"operation": "publish", "fault": "error", "reason": "overloaded", "times": 3}'


def _inject(faults: Faults, fields: dict[str, Any]) -> Injection:
    operation, kind = _text("operation", fields.pop("operation", None)), fields.pop("fault", None)
    if not isinstance(kind, str) or kind not in _MAKE:
        raise ValueError(f"fault must be one of {', '.join(_MAKE)}, such as {_EXAMPLE}")
    argument, make = _MAKE[kind]
    if argument is not None and argument not in fields:
        raise ValueError(f"the fault {kind} needs the field {argument!r}")
    fault = make(fields.pop(argument) if argument is not None else None)
    probability = fields.pop("probability", 1.0)
    if isinstance(probability, bool) or not isinstance(probability, int | float):
        raise ValueError("probability must be a number, more than 0 and at most 1")
    seed, times = (_integer(name, fields.pop(name, None)) for name in ("seed", "times"))
    if fields:
        raise ValueError(f"unknown field: {', '.join(sorted(fields))}")
    return faults.inject(operation, fault, probability=probability, seed=seed, times=times)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, such as in {_EXAMPLE}")
    return value


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a duration, such as '500ms' or '2s'")
    return parse_duration(value)


def _integer(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{name} must be a whole number")
    return value
