"""Compute the answers of `/healthz`, `/readyz` and `/status`: pure functions of a router's state.

Answers about many routes are computed in pieces. All numbers of one route, or of one connection, are read at one
moment, so each ledger adds up; another route may change before it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from types import MappingProxyType
from typing import Any

from router_trio.protocol.metadata import package_version
from router_trio.states import REPLY, ConnectionState, RouteState
from router_trio.telemetry.logs.redact import shown_text
from router_trio.telemetry.pieces import Parts, Pieces, complete, in_parts
from router_trio.telemetry.view import ConfigView, ConnectionView, RouterView

OK = 200
UNAVAILABLE = 503

Answer = tuple[int, dict[str, Any]]
"""An HTTP status and a JSON body."""


def health(view: RouterView) -> Answer:
    """Return 200 while the process works, or 503 if the router can't continue."""
    return answer([{"router": view.name, "reason": view.fatal}] if view.fatal is not None else [])


def readiness(view: RouterView, now: float) -> Answer:
    """Return 200 if every connection and route would deliver a message now, else 503. `now` is on the fences' clock."""
    return complete(readiness_pieces(view, lambda: now))


def readiness_pieces(view: RouterView, clock: Callable[[], float]) -> Pieces[Answer]:
    """Compute `readiness` in pieces."""
    found: list[Mapping[str, Any]] = []
    for part in unready_parts(view, clock):
        found += part
        yield
    return answer(found)


def unready_parts(view: RouterView, clock: Callable[[], float]) -> Iterator[list[dict[str, str]]]:
    """Yield the reasons of the router, of each connection and of each route; an empty list for one that is ready.

    Connections and routes may change between two of them; `clock` is the clock of the fences.
    """
    own = []
    if view.fatal is not None:
        own.append({"router": view.name, "reason": view.fatal})
    if not view.connections:
        own.append({"router": view.name, "reason": "starting"})
    yield own
    for name, connection in tuple(view.connections.items()):
        why = connection.state.unready(clock())
        found = [] if why is None else [{"connection": name, "reason": why}]
        found += [{"connection": name, "reason": why} for why in connection.state.missing_streams.values()]
        for destination in connection.outbox.unanswered_destinations():
            why = f"{destination} does not confirm publishes (no PubAck); check its stream and the stream's leader"
            found.append({"connection": name, "reason": why})
        yield found
    for route in tuple(view.routes):
        yield [{"route": route.name, "reason": why} for why in route.reasons(clock())]


def route_ready(view: RouterView, route: RouteState, now: float) -> bool:
    """Return True if a route would deliver a message now: it is running and its connections are connected."""
    if route.reasons(now):
        return False
    used = {route.connection, *(one.connection for one in route.to if not one.dead_letters)}
    connections = view.connections
    return all(connections[name].state.unready(now) is None for name in used if name in connections)


def waiting_for(view: RouterView, now: float) -> str | None:
    """Return the first route or connection that keeps the router from receiving, and why; None if all receive."""
    for route in view.routes:
        if route.unready is not None and not route.standby:
            away = view.connections[route.connection].state.unready(now)
            return f"route {route.name}: {route.unready}" if away is None else f"connection {route.connection}: {away}"
    return None


def status(view: RouterView, uptime_seconds: float) -> dict[str, Any]:
    """Return the state, counts and ledger of every connection and route."""
    text = complete(status_pieces(view, uptime_seconds))
    found: dict[str, Any] = json.loads(b"".join(complete(text.parts())))
    return found


@dataclass(frozen=True, slots=True)
class StatusText:
    """`status` as JSON text, without a newline: what is before the routes, the member of each route, what is behind."""

    head: bytes
    routes: Mapping[str, bytes]
    tail: bytes

    def parts(self) -> Pieces[Parts]:
        """Join all of it."""
        return self._with(self.routes.values())

    def changes(self, known: dict[str, int]) -> Pieces[Parts]:
        """Join it with those routes that differ from `known`, the hashes of what was sent before. Updates `known`."""
        changed = []
        for name, text in self.routes.items():
            now = hash(text)
            if known.get(name) != now:
                known[name] = now
                changed.append(text)
            yield
        for name in [name for name in known if name not in self.routes]:
            del known[name]
        return (yield from self._with(changed))

    def _with(self, routes: Iterable[bytes]) -> Pieces[Parts]:
        members = (b"," + text if number else text for number, text in enumerate(routes))
        return (yield from in_parts(chain((self.head,), members, (self.tail,))))


def status_pieces(
    view: RouterView, uptime_seconds: float, more: Mapping[str, Any] = MappingProxyType({})
) -> Pieces[StatusText]:
    """Compute `status` in pieces, with the members of `more` added."""
    router = {
        "name": view.name,
        "version": package_version(),
        "uptime_seconds": round(uptime_seconds, 3),
        "config": _config(view.config),
    }
    ledgers: dict[str, Any] = {}
    connections: dict[str, Any] = {}
    for name, one in tuple(view.connections.items()):
        connections[name], ledgers[name] = _connection(one.state, one), _ledger(one)
        yield
    head = f'{_json(router)[:-1]},"connections":{_json(connections)},"routes":{{'.encode()
    routes: dict[str, bytes] = {}
    for route in tuple(view.routes):
        routes[route.name] = f"{_json(route.name)}:{_json(_route(route))}".encode()
        yield
    members = "".join(f",{_json(name)}:{_json(value)}" for name, value in more.items())
    return StatusText(head, routes, f'}},"ledger":{_json(ledgers)}{members}}}'.encode())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def answer(reasons: Sequence[Mapping[str, Any]]) -> Answer:
    """Return 200, or 503 if there are reasons, with the reasons redacted."""
    shown = [
        {name: shown_text(value) if isinstance(value, str) else value for name, value in reason.items()}
        for reason in reasons
    ]
    body = {"status": "unavailable" if reasons else "ok", "reasons": shown}
    return (UNAVAILABLE if reasons else OK), body


def _config(config: ConfigView) -> dict[str, Any]:
    problems = config.last_error
    return {
        "hash": config.hash,
        "files": [shown_text(file) for file in config.files],
        "loaded_at": _time(config.loaded_at),
        "last_error": None if problems is None else "\n".join(map(shown_text, problems.splitlines())),
        "reloads": dict(config.reloads),
    }


def _connection(state: ConnectionState, connection: ConnectionView) -> dict[str, Any]:
    return {
        "state": state.state,
        "since": _time(state.since),
        "server": None if state.server is None else shown_text(state.server),
        "attempts": state.attempts,
        "pending": connection.outbox.pending,
        "in_flight": connection.outbox.in_flight,
        "last_error": None if state.last_error is None else shown_text(state.last_error),
    }


def _route(route: RouteState) -> dict[str, Any]:
    reason = route.trouble
    return {
        "state": route.state,
        **({} if reason is None else {"reason": shown_text(reason)}),
        **({"standby": True} if route.standby else {}),
        "from": {"connection": route.connection, **route.source},
        "to": _destinations(route),
        "received": route.received,
        "routed": sum(route.routed.values()),
        "failed": sum(route.failed.values()),
        "dead_lettered": route.dead_lettered,
        **_behind(route),
        **route_partitions(route),
        **_schedules(route),
        **_failing(route),
        **_flow(route),
        "ledger": route_ledger(route),
    }


def route_ledger(route: RouteState) -> dict[str, Any]:
    """Return the ledger of a route. `received = in_hand + settled`, always."""
    return {"received": route.received_in_all, "in_hand": route.in_hand, "settled": route.settled}


def _destinations(route: RouteState) -> list[dict[str, Any]]:
    """Return where a route sends to, as configured: answers first, then destinations, then dead letters.

    `routed` is the number of messages that were delivered there. Destinations with the same subject have one number.
    """
    routed = route.routed
    known = [
        {
            "connection": one.connection,
            **one.shown,
            "routed": routed.get(one.template, 0),
        }
        if not one.dead_letters
        else {"connection": one.connection, **one.shown, "dead_letters": True, "routed": route.dead_lettered}
        for one in route.to
    ]
    if REPLY in route.destinations:
        known.insert(
            0, {"connection": route.connection, "subject": REPLY, "jetstream": False, "routed": routed.get(REPLY, 0)}
        )
    return known


def _behind(route: RouteState) -> dict[str, Any]:
    """Return how far a route from a stream is behind; None while that is not known."""
    if not route.redelivers:
        return {}
    behind = route.behind
    return {
        "behind": None if behind is None else {"messages": behind.messages, "seconds": round(behind.seconds, 3)},
    }


def _schedules(route: RouteState) -> dict[str, Any]:
    """Return the schedules of a route with delays or scheduled retries; None for a number that is not known."""
    shown: dict[str, Any] = {}
    if (delays := route.delays) is not None:
        shown["delays"] = {"scheduled": delays.stored, "waiting": delays.waiting}
    if (retries := route.scheduled_retries) is not None:
        shown["retries"] = {
            "scheduled": retries.stored,
            "fired": retries.fired,
            "waiting": retries.waiting,
            "lost": retries.lost,
        }
    if route.draining:
        shown["draining"] = [
            {"stream": stream, "prefix": prefix, "waiting": waiting}
            for (stream, prefix), waiting in route.draining.items()
        ]
    return {"schedules": shown} if shown else {}


def route_partitions(route: RouteState) -> dict[str, Any]:
    """Return the partitions of a route, those that this process leads, and the number of processes that share them."""
    partitions = route.partitions
    if partitions is None:
        return {}
    return {
        "partitions": {
            "count": partitions.count,
            "led": partitions.led,
            "wanted": partitions.wanted,
            "members": len(partitions.members),
            **({"member": partitions.member} if partitions.member else {}),
            "lag": {str(number): partitions.lag[number] for number in partitions.led if number in partitions.lag},
            "uncopied": partitions.uncopied,
        }
    }


def _failing(route: RouteState) -> dict[str, Any]:
    """Return the last failure of a message, or None, and the number and age of messages being retried."""
    last, (count, oldest) = route.last_failure, route.retrying
    return {
        "last_failure": None
        if last is None
        else {
            "at": _time(last.at),
            "reason": last.reason,
            "detail": None if last.detail is None else shown_text(last.detail),
            "subject": None if last.subject is None else shown_text(last.subject),
            "sequence": last.sequence,
            "attempt": last.attempt,
            "place": None if last.place is None else shown_text(last.place),
        },
        "retrying": {"count": count, "oldest_seconds": round(oldest, 3)},
    }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _flow(route: RouteState) -> dict[str, Any]:
    """Return the limit of a route and the breakers of its destinations, if it has any."""
    found: dict[str, Any] = {}
    limit = route.limit
    if limit is not None:
        per = {} if limit.per is None else {"per": limit.per}
        found["limit"] = {"rate": limit.rate, "burst": limit.burst, **per}
        found["limit"] |= {"limited": route.limited, "waiting": route.waiting_for_limit}
    if route.conflicts:
        found["conflicts"] = route.conflicts
    if route.breakers:
        found["breakers"] = [
            {
                "destination": one.template,
                "connection": one.connection,
                "state": one.state,
                "opened": route.openings[one.connection, one.template],
                **({} if one.why_open is None else {"reason": shown_text(one.why_open)}),
            }
            for one in route.breakers
        ]
    return found


def _ledger(connection: ConnectionView) -> dict[str, Any]:
    outbox = connection.outbox
    return {
        "accepted": outbox.ledger.accepted,
        "pending": outbox.pending,
        "in_flight": outbox.in_flight,
        "settled": dict(outbox.ledger.settled),
    }
