"""The path of a message, for `router-trio trace`: to the router, through it, and from it to the end of each copy.

What servers do is traced (`nats.message_trace`), what the router does is explained (`cli.explanation`). A problem is
whatever keeps the message or a copy from arriving.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from router_trio.cli.explanation import Explanation, RouteExplanation, Sending
from router_trio.errors import PublishError, SourceError
from router_trio.errors.quotes import excerpt
from router_trio.nats.message_trace import CLIENT, MessageTrace, MessageTracer, TraceEvent, TraceReport
from router_trio.protocol.control_headers import ControlHeaders
from router_trio.protocol.headers import Headers, decode
from router_trio.settings import Settings

if TYPE_CHECKING:
    from router_trio.cli.explain import Given
    from router_trio.nats.command_link import CommandLink

MOST_SHOWN = 20
"""Clients of one server that the text names. JSON has all of them."""


@dataclass(slots=True)
class Part:
    """The path of one message within the system of a connection; None with the `problem` why it is not known."""

    connection: str
    subject: str
    trace: MessageTrace | None = None
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return connection and subject, and the servers on the path or the problem."""
        found: dict[str, Any] = {"connection": self.connection, "subject": self.subject}
        if self.trace is None:
            return found | {"problem": self.problem}
        servers = [_report_as_json(report) for report in self.trace.reports]
        return found | {"servers": servers} | ({"silent": list(self.trace.silent)} if self.trace.silent else {})

    def lines(self) -> Iterator[str]:
        """Yield the lines of text."""
        yield f"{self.connection}: {excerpt(self.subject)}"
        if self.trace is None:
            yield f"  not traced: {self.problem}"
            return
        for report in self.trace.reports:
            yield from _report_lines(report)
        for name in self.trace.silent:
            yield f"  server {name} did not report: it is older than 2.11, or did not answer in time"


@dataclass(slots=True)
class Path:
    """The path of a message: how it gets to the router, what the router makes of it, and how each copy continues."""

    router: str
    explanation: Explanation
    arrivals: list[Part] = field(default_factory=list)
    copies: list[Part] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the three parts of the path, and the problems."""
        return {
            "subject": self.explanation.subject,
            "arrives": [one.as_json() for one in self.arrivals],
            "router": {"name": self.router, "routes": self.explanation.as_json()["routes"]},
            "copies": [one.as_json() for one in self.copies],
            "problems": self.problems,
        }

    def lines(self) -> Iterator[str]:
        """Yield the lines of text."""
        for part in self.arrivals:
            yield from part.lines()
        yield f"router {self.router}"
        yield from (f"  {line}" for line in self.explanation.lines())
        for part in self.copies:
            yield from part.lines()


def connections_for(explanation: Explanation) -> list[str]:
    """Return the connections on which a message is traced to the router: those of the routes that would take it.

    If none would, those of all routes: the path may show why.
    """
    taking = [route.plan.connection for route in explanation.routes] or [plan.connection for plan in explanation.plans]
    return list(dict.fromkeys(taking))


def check_subject(settings: Settings, connection: str, subject: str) -> str | None:
    """Return why a message to this subject can't be traced, None if it can.

    A server answers requests to itself and to JetStream even if they are only traced.
    """
    for prefix in ("$JS.", "$SYS.", f"{settings.connections[connection].api}."):
        if subject.startswith(prefix):
            return f"{subject} is not traced: servers answer requests below {prefix}> even if they are only traced"
    return None


async def find_path(
    settings: Settings,
    explanation: Explanation,
    message: Given,
    links: Mapping[str, CommandLink],
    unreachable: Mapping[str, str],
) -> Path:
    """Trace the message to the router, and each copy from there. Raises `LinkError`. Can be cancelled."""
    path = Path(settings.router.name, explanation)
    tracers = _Tracers(settings, links, unreachable)
    for name in connections_for(explanation):
        part = await tracers.trace(name, explanation.subject, message.payload, message.headers)
        path.arrivals.append(part)
        path.problems += _general_problems(part)
    if not explanation.routes:
        path.problems.append(f"no route takes {excerpt(explanation.subject)}")
    for route in explanation.routes:
        arrival = next(one for one in path.arrivals if one.connection == route.plan.connection)
        path.problems += _arrival_problems(route, arrival, settings.router.name)
        path.problems += _route_problems(route)
    traced: dict[tuple[str, str], Part] = {}
    for route in explanation.routes:
        for sending in route.sendings:
            if sending.subject is None:
                continue
            place = sending.destination.connection, sending.subject
            if place not in traced:
                traced[place] = await tracers.trace(*place, *_copy(sending, message))
                path.copies.append(traced[place])
                path.problems += _general_problems(traced[place])
            path.problems += _copy_problems(sending, traced[place])
    path.problems = list(dict.fromkeys(path.problems))
    return path


class _Tracers:
    """The tracers of the connections, each opened when it is first needed."""

    def __init__(self, settings: Settings, links: Mapping[str, CommandLink], unreachable: Mapping[str, str]) -> None:
        self._settings = settings
        self._links = links
        self._refused: dict[str, str] = dict(unreachable)
        self._tracers: dict[str, MessageTracer] = {}

    async def trace(self, connection: str, subject: str, payload: bytes, headers: Headers | None) -> Part:
        part = Part(connection, subject, problem=check_subject(self._settings, connection, subject))
        if part.problem is None:
            part.problem = await self._why_not(connection)
        if part.problem is None:
            try:
                part.trace = await self._tracers[connection].trace(subject, payload, headers)
            except (PublishError, SourceError) as error:
                part.problem = str(error)
        return part

    async def _why_not(self, connection: str) -> str | None:
        """Return why nothing can be traced on a connection, None if it can."""
        if connection not in self._tracers and connection not in self._refused:
            tracer = MessageTracer(self._links[connection])
            try:
                await tracer.open()
            except SourceError as error:
                self._refused[connection] = str(error)
            else:
                self._tracers[connection] = tracer
        return self._refused.get(connection)


def _copy(sending: Sending, message: Given) -> tuple[bytes, Headers | None]:
    """Return payload and headers of a copy, as the router would send it, without its message id."""
    payload = message.payload if sending.payload is None else sending.payload
    headers = sending.headers
    if headers is None and message.block:
        carried = ControlHeaders(sending.destination.keep).removed(message.block)
        headers = decode(carried) if carried else None
    return payload, headers


# --- the problems ---


def _general_problems(part: Part) -> list[str]:
    where = f"{part.connection}: {excerpt(part.subject)}"
    if part.trace is None:
        return [f"{where}: not traced: {part.problem}"]
    silent = [f"{where}: server {name} did not report where the message would go" for name in part.trace.silent]
    return [f"{where}: {error}" for error in part.trace.errors] + silent


def _arrival_problems(route: RouteExplanation, part: Part, router: str) -> list[str]:
    """Return why the message would not get to a route."""
    if part.trace is None or part.trace.silent or part.trace.errors:
        return []  # reported, or not known
    source, name = route.plan.settings.source, route.plan.name
    stream, subscription = source.kind.stream(source), source.kind.subscription(source)
    if stream is not None:
        taken = part.trace.streams
        others = f"; it would be stored in {', '.join(map(excerpt, taken))}" if taken else ""
        return [] if stream in taken else [f"route {name}: stream {stream} does not take this subject{others}"]
    assert subscription is not None, "a source is a stream or a subscription"
    subject, queue = subscription
    client = f"{router} {part.connection} "
    for event in part.trace.events:
        if _is_delivery(event) and (
            (event.subscription, event.queue) == (subject, queue or "") or event.name.startswith(client)
        ):
            return []
    of_queue = "" if queue is None else f" in queue {queue}"
    return [f"route {name}: no client has the subscription {subject}{of_queue}; is the router running and ready?"]


def _route_problems(route: RouteExplanation) -> Iterator[str]:
    name = route.plan.name
    if route.error is not None:
        yield f"route {name}: the message fails: {route.error}"
    elif route.filtered is not None:
        yield f"route {name}: the message is filtered ({route.filtered})"
    for sending in route.sendings:
        if sending.problem is not None:
            yield f"route {name}: the copy to {sending.destination.template} fails: {sending.problem}"


def _copy_problems(sending: Sending, part: Part) -> list[str]:
    """Return why a copy would arrive nowhere, or in another stream than the configured one."""
    trace, destination = part.trace, sending.destination
    if trace is None or trace.silent or trace.errors:
        return []
    where = f"{part.connection}: {excerpt(part.subject)}"
    if destination.waits_for_puback and not trace.streams:
        return [f"{where}: no stream takes this subject, so the copy is not stored"]
    if destination.waits_for_puback and destination.stream is not None and destination.stream not in trace.streams:
        return [f"{where}: stream {destination.stream} does not take this subject"]
    if not trace.streams and not any(_is_delivery(event) for event in trace.events):
        return [f"{where}: nothing is subscribed to this subject, so the copy is lost"]
    return []


def _is_delivery(event: TraceEvent) -> bool:
    return event.type == "eg" and event.kind == CLIENT and not event.error


# --- the output ---


def _report_as_json(report: TraceReport) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    for one in report.events:
        values = {
            "type": one.type,
            "error": one.error,
            "subject": one.subject,
            "stream": one.stream,
            "account": one.account,
            "name": one.name,
            "subscription": one.subscription,
            "queue": one.queue,
            "hop": one.hop,
        }
        events.append({name: value for name, value in values.items() if value})
    return {"server": report.server, "version": report.version, "hop": report.hop, "events": events}


def _report_lines(report: TraceReport) -> Iterator[str]:
    yield f"  server {report.server} (nats-server {report.version})"
    deliveries = [one for one in report.events if _is_delivery(one)]
    for one in report.events:
        if one not in deliveries[MOST_SHOWN:] and (text := _described(one)):
            yield f"    {text}{f': {one.error}' if one.error else ''}"
    if len(deliveries) > MOST_SHOWN:
        yield f"    and to {len(deliveries) - MOST_SHOWN:,} more clients"


def _described(event: TraceEvent) -> str:
    """Return an event as text, `""` for one that says nothing."""
    if event.type == "in":
        return f"received in account {event.account}" if event.account else ("refused" if event.error else "")
    if event.type == "sm":
        return f"its subject is mapped to {excerpt(event.subject)}"
    if event.type in ("si", "se"):
        what = "a service import" if event.type == "si" else "a stream export"
        return f"by {what} to account {event.account}"
    if event.type == "js":
        if event.error:
            return f"stream {event.stream} would refuse it"
        would = "drop it, since no consumer is interested" if event.ignored else "store it"
        return f"stream {event.stream} would {would}"
    if event.type == "eg":
        queue = f" in queue {event.queue}" if event.queue else ""
        if event.kind == CLIENT:
            name = f"client {event.name!r}" if event.name else "a client without a name"
            return f"to {name}, subscription {excerpt(event.subscription)}{queue}"
        return f"to server {event.name}" if event.hop or event.name else ""
    return event.type
