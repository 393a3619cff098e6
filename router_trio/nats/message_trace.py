"""Trace messages: servers report the path of a message that they neither deliver nor store (ADR-41).

Each server that the message reaches sends a report to an inbox: the client that sent it, mappings of its subject, the
streams that would store it, and the clients and servers that would get it. A server before 2.11 does not know the
headers, and would deliver the message. So nothing is sent to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from router_trio.errors import PublishError, SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.nats.command_link import CommandLink
from router_trio.protocol import bounded_json, framing
from router_trio.protocol.framing import RawMessage
from router_trio.protocol.headers import Headers, encode

SINCE = (2, 11)

REPORTS_WITHIN = 3.0
"""Seconds to wait for the reports of all servers on the path."""

MAX_REPORTS = 256
MAX_EVENTS = 10_000
"""Events of one report: one for each client that would get the message."""

MAX_REPORT_BYTES = 8 * 1024 * 1024

DESTINATION, ONLY, HOP = "Nats-Trace-Dest", "Nats-Trace-Only", "Nats-Trace-Hop"

CLIENT = 0
"""The kind of a client in events; others are servers, or parts of one."""


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """An event of a report.

    `type` is `in` (the message was received), `sm` (its subject was mapped), `si` and `se` (a service import or a
    stream export), `js` (a stream) or `eg` (it would be sent to a client or a server). `subject` is that of the message
    from then on. A server that gets the message has a `hop`, which its own report names.
    """

    type: str
    error: str
    subject: str
    stream: str
    ignored: bool
    kind: int
    name: str
    account: str
    subscription: str
    queue: str
    hop: str


@dataclass(frozen=True, slots=True)
class TraceReport:
    """The report of one server. `hop` is `""` for the server to which the message was published."""

    server: str
    version: str
    hop: str
    events: tuple[TraceEvent, ...]


@dataclass(frozen=True, slots=True)
class MessageTrace:
    """The path of a message: the reports in the order of hops, and the servers that did not send one in time."""

    reports: tuple[TraceReport, ...]
    silent: tuple[str, ...]

    @property
    def events(self) -> Iterable[TraceEvent]:
        """All events, server by server."""
        for report in self.reports:
            yield from report.events

    @property
    def streams(self) -> list[str]:
        """The streams that would store the message."""
        return [one.stream for one in self.events if one.type == "js" and not one.error and not one.ignored]

    @property
    def errors(self) -> list[str]:
        """The errors of all servers, each with the server that reports it."""
        return [
            f"server {report.server} reports: {one.error}"
            for report in self.reports
            for one in report.events
            if one.error
        ]


class MessageTracer:
    """Traces messages over the link of a command. Its methods raise `LinkError`, and can be cancelled."""

    def __init__(self, link: CommandLink) -> None:
        self._link = link
        self._inbox = link.requests.inbox + b"-trace"
        self._received: list[RawMessage] = []
        self._arrived = trio.Event()
        self._traced = 0

    async def open(self) -> None:
        """Prepare to trace. Raises `SourceError` if the server would deliver the message, or may not report."""
        info = self._link.link.info
        if info.major_minor is None or info.major_minor < SINCE or not info.headers:
            named = f"nats-server {excerpt(info.version)}" if info.version else "a server of unknown version"
            detail = f"{named} would deliver the message; tracing needs 2.11 or later, so nothing was sent"
            raise SourceError(detail, reason=reasons.SERVER_TOO_OLD)
        self._link.requests.subscribe(self._inbox + b".*", self._take)
        # Reports need the permission of this user. A message of our own to the inbox shows whether it is there.
        test = self._link.requests.send(self._inbox + b".0")
        await self._link.link.fence()
        test.forget()
        if test.refusal is not None:
            raise test.refusal

    async def trace(self, subject: str, payload: bytes = b"", headers: Headers | None = None) -> MessageTrace:
        """Return the path of a message.

        Raises `PublishError` if it is too large, and `SourceError`: `bad_answer`, or `timeout` without a report.
        """
        self._traced += 1
        inbox = b"%b.%d" % (self._inbox, self._traced)
        pairs = () if headers is None else headers.pairs()
        own = ((DESTINATION, framing.text(inbox)), (ONLY, "true"))
        block = encode(Headers([*pairs, *own]))
        link, wire = self._link.link, framing.wire(subject)
        size = len(block) + len(payload)
        if size > link.max_payload or framing.control_line_size(wire, b"", len(block), size) > link.max_control_line:
            raise PublishError(
                f"the message to {excerpt(subject)} is larger than its server accepts, with the headers of the trace",
                reason=reasons.TOO_LARGE,
            )
        self._received.clear()
        link.wire.send(framing.publish(wire, payload, headers=block))
        reports = dict[str, TraceReport]()
        with trio.move_on_after(REPORTS_WITHIN):
            while "" not in reports or _silent(reports.values()):
                await self._arrived.wait()
                self._arrived = trio.Event()
                for raw in self._received:
                    if raw[0] == inbox and len(reports) < MAX_REPORTS:
                        report = _read(raw, subject)
                        reports[report.hop] = report
                self._received.clear()
        if "" not in reports:
            detail = f"no server reported the path of {excerpt(subject)} to {framing.text(inbox)}"
            raise SourceError(f"{detail} within {REPORTS_WITHIN:g} s", reason=reasons.TIMEOUT)
        ordered = sorted(reports.values(), key=lambda one: [int(part) for part in one.hop.split(".") if part])
        return MessageTrace(tuple(ordered), _silent(ordered))

    def _take(self, batch: Sequence[RawMessage]) -> None:
        self._received += batch
        self._arrived.set()


def _silent(reports: Iterable[TraceReport]) -> tuple[str, ...]:
    """Return the names of the servers that were sent the message, and whose reports are missing."""
    reports = list(reports)
    hops = {one.hop for one in reports}
    sent = [event for report in reports for event in report.events if event.type == "eg" and event.hop]
    return tuple(event.name for event in sent if event.hop not in hops)


def _read(raw: RawMessage, subject: str) -> TraceReport:
    """Return the report in a message. Raises `SourceError` (`bad_answer`)."""
    try:
        found = bounded_json.read(framing.payload(raw), MAX_REPORT_BYTES)
        server = found.required("server")
        request = found.object("request")
        return TraceReport(
            server.text("name", ""),
            server.text("ver", ""),
            _hop(request),
            tuple(map(_event, found.objects("events", most=MAX_EVENTS))),
        )
    except bounded_json.AnswerError as error:
        detail = f"a report on the path of {excerpt(subject)} is not valid: {error}"
        raise SourceError(detail, reason=reasons.BAD_ANSWER) from None


def _hop(request: bounded_json.Object | None) -> str:
    """Return the hop that the headers of the message name, `""` at the first server."""
    headers = None if request is None else request.object("header")
    [hop] = ([] if headers is None else headers.subjects(HOP, most=1)) or [""]
    return _checked_hop(hop)


def _checked_hop(hop: str) -> str:
    if hop and not all(part.isdecimal() and len(part) < 10 for part in hop.split(".")):
        raise bounded_json.AnswerError("a hop is not a list of numbers")
    return hop


def _event(found: bounded_json.Object) -> TraceEvent:
    kind = found.text("type")
    subject = {"in": "subj", "sm": "to", "js": "subject"}.get(kind)
    return TraceEvent(
        type=kind,
        error=found.description("error"),
        subject="" if subject is None else found.optional_subject(subject),
        stream=found.text("stream", ""),
        ignored=found.flag("nointerest"),
        kind=found.number("kind", CLIENT),
        name=found.description("name"),
        account=found.description("acc") or found.description("to" if kind in ("si", "se") else "acc"),
        subscription=found.optional_subject("sub"),
        queue=found.description("queue"),
        hop=_checked_hop(found.text("hop", "")),
    )
