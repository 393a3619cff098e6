"""The pages of `router-trio tap`: `POST /tap` opens a tap, `GET /tap/NAME` reads it, `DELETE /tap/NAME` closes it.

A client reads again and again; nothing is sent to it by itself. So one that is slow, or was stopped, holds up nothing:
its messages wait in bounded buffers (see `telemetry.tap`), and what has no room there is counted as left out. A tap
that was not read for `LEASE` seconds is closed. Each opening and closing is logged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Protocol

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from router_trio.errors.quotes import excerpt
from router_trio.events import Emit, TapClosed, TapOpened
from router_trio.telemetry.http.rendering import REST
from router_trio.telemetry.tap.tap import MAX_NAME, Reading, TapRefused, TapRequest, check_allowed
from router_trio.telemetry.tap.taps import Taps
from router_trio.telemetry.view import RouterView

MAX_TAPS = 4
"""Maximum number of open taps."""

LEASE = 120.0
"""Seconds after which a tap that is not read is closed."""

WAIT = 1.0
"""Maximum seconds for which a reading waits for its first message."""

LOOK_EVERY = 0.1
"""Seconds between two looks for messages, so also the least time of a reading."""

EXPIRE_EVERY = 5.0
"""Seconds between two checks for taps that are not read any more."""

_FRESH = {"cache-control": "no-store", "content-type": "application/json"}
_FIELDS = frozenset({"route", "fate", "where", "payloads", "user"})
_UNREAD = f"the tap was not read for {LEASE:g} s"


class TapSource(Protocol):
    """Where the messages of taps are read from: the router of this process, or its workers."""

    def check(self, request: TapRequest) -> None:
        """Raise `TapRefused` if the settings in force do not allow such a tap."""

    async def open(self, name: str, request: TapRequest) -> None:
        """Open a tap under this name. Raises `TapRefused`."""

    async def read(self, name: str, request: TapRequest) -> Reading:
        """Read messages that wait. Raises `TapRefused` if the tap is closed."""
        ...

    def close(self, name: str) -> None:
        """Close a tap. Does nothing if it is closed."""


class OwnTaps:
    """The `TapSource` of the router in this process."""

    def __init__(self, taps: Taps, view: RouterView) -> None:
        self._taps = taps
        self._view = view

    def check(self, request: TapRequest) -> None:
        check_allowed(request, self._taps.settings)

    async def open(self, name: str, request: TapRequest) -> None:
        await self._taps.open(name, request, self._view)

    async def read(self, name: str, request: TapRequest) -> Reading:
        return await self._taps.read(name, self._view, REST)

    def close(self, name: str) -> None:
        self._taps.close(name)


@dataclass(slots=True, eq=False)
class _Open:
    """An open tap."""

    request: TapRequest
    peer: str
    read_at: float
    turn: trio.Lock = field(default_factory=trio.Lock)
    shown: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    not_matching: int = 0
    failed: int = 0
    waiting: int = 0


class TapPages:
    """The open taps of one HTTP server. `keep` closes those that are not read any more."""

    def __init__(self, source: TapSource, emit: Emit) -> None:
        self._source = source
        self._emit = emit
        self._open: dict[str, _Open] = {}
        self._opening = 0

    def pages(self) -> Sequence[BaseRoute]:
        """Return the pages."""
        return [
            Route("/tap", self._open_tap, methods=["POST"]),
            Route("/tap/{name}", self._read_tap, methods=["GET"]),
            Route("/tap/{name}", self._close_tap, methods=["DELETE"]),
        ]

    async def keep(self) -> None:
        """Close taps that are not read any more, until cancelled."""
        while True:
            await trio.sleep(EXPIRE_EVERY)
            late = trio.current_time() - LEASE
            for name, tap in tuple(self._open.items()):
                if tap.read_at < late:
                    self._close(name, _UNREAD)

    async def _open_tap(self, request: Request) -> Response:
        try:
            wanted = _request(await request.body())
            self._source.check(wanted)
            if len(self._open) + self._opening >= MAX_TAPS:
                raise TapRefused(503, f"{MAX_TAPS} taps are open already")
            name = token_hex(16)
            self._opening += 1
            try:
                await self._source.open(name, wanted)
            finally:
                self._opening -= 1
        except TapRefused as refused:
            return _refused(refused)
        tap = self._open[name] = _Open(wanted, request.scope["client"][0], trio.current_time())
        self._emit(
            TapOpened(
                at=trio.current_time(),
                route=wanted.route,
                peer=tap.peer,
                user=wanted.user,
                fate=wanted.fate,
                where=wanted.where,
                payloads=wanted.payloads,
            )
        )
        return Response(json.dumps({"tap": name}) + "\n", 201, _FRESH)

    async def _read_tap(self, request: Request) -> Response:
        name = request.path_params["name"]
        tap = self._open.get(name)
        if tap is None:
            return _refused(TapRefused(404, f"no such tap is open; a tap that is not read for {LEASE:g} s is closed"))
        async with tap.turn:
            try:
                reading = await self._read(name, tap)
            except TapRefused as refused:
                self._close(name, str(refused))
                return _refused(refused)
            finally:
                tap.read_at = trio.current_time()
        return Response(_body(tap, reading), headers=_FRESH)

    async def _read(self, name: str, tap: _Open) -> Reading:
        """Return the messages of a tap that wait; wait for the first one, for up to `WAIT` seconds."""
        reading, until = Reading(), trio.current_time() + WAIT
        while True:
            await trio.sleep(LOOK_EVERY)
            self._source.check(tap.request)
            found = await self._source.read(name, tap.request)
            tap.shown += len(found.lines)
            tap.left_out.update(found.left_out)
            tap.not_matching += found.not_matching
            tap.failed += found.failed
            tap.waiting = found.waiting
            reading.add(found)
            if reading.lines or trio.current_time() >= until:
                return reading

    async def _close_tap(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._open:
            return _refused(TapRefused(404, "no such tap is open"))
        self._close(name, "closed by its user")
        return Response(status_code=204, headers={"cache-control": "no-store"})

    def _close(self, name: str, reason: str) -> None:
        tap = self._open.pop(name, None)
        if tap is None:
            return
        self._source.close(name)
        self._emit(
            TapClosed(
                at=trio.current_time(),
                route=tap.request.route,
                peer=tap.peer,
                user=tap.request.user,
                reason=reason,
                shown=tap.shown,
                left_out=max(0, tap.left_out.total()) + tap.waiting,
            )
        )


def _request(body: bytes) -> TapRequest:
    """Return the request that a body has. Raises `TapRefused`."""
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise TapRefused(400, "the body is not JSON") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("route"), str):
        raise TapRefused(400, 'the body must be a JSON object such as {"route": "orders"}')
    if unknown := fields.keys() - _FIELDS:
        raise TapRefused(400, f"unknown field {excerpt(min(unknown))!r}; the fields are {', '.join(sorted(_FIELDS))}")
    for name in ("fate", "where", "user"):
        if not isinstance(fields.get(name), str | None):
            raise TapRefused(400, f"{name} must be a string")
    if not isinstance(fields.get("payloads", False), bool):
        raise TapRefused(400, "payloads must be true or false")
    if len(fields["route"]) > MAX_NAME:
        raise TapRefused(404, f"no route has a name of more than {MAX_NAME} characters")
    return TapRequest(
        fields["route"],
        fields.get("fate"),
        fields.get("where"),
        fields.get("payloads", False),
        excerpt(fields.get("user") or ""),
    )


def _body(tap: _Open, reading: Reading) -> str:
    """Return an answer: the messages, and the numbers of all messages since the tap was opened."""
    numbers = {
        "shown": tap.shown,
        "left_out": {fate: count for fate, count in tap.left_out.items() if count > 0},
        "not_matching": tap.not_matching,
        "failed": tap.failed,
        "waiting": tap.waiting,
        "error": reading.error,
    }
    return f'{json.dumps(numbers)[:-1]}, "messages": [{",".join(reading.lines)}]}}\n'


def _refused(refused: TapRefused) -> Response:
    return Response(json.dumps({"error": str(refused)}) + "\n", refused.code, _FRESH)
