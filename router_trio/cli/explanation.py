"""The result of `router-trio explain`: what would happen to one message, and why, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps
from typing import Any, Protocol

from router_trio.errors import EvaluationError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.protocol.headers import Headers
from router_trio.routing.route_plans import Destination, RoutePlan
from router_trio.settings.checks.servers import newer_mapping
from router_trio.settings.guarantee import guarantee
from router_trio.settings.units import format_duration, format_rate

LONGEST_SHOWN = 200
"""Characters of a value or a payload that the text shows. JSON has all of it."""


class Printable(Protocol):
    """A part of an explanation that can be printed as JSON and as text."""

    def as_json(self) -> dict[str, Any]:
        """Return the explanation as a JSON object."""
        ...

    def lines(self) -> Iterator[str]:
        """Yield the explanation as lines of text."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An expression, or a part of one, and its result: a value in JSON types, or an error."""

    expression: str
    value: Any
    error: str | None
    parts: Sequence[Evaluated] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the expression, its value or error, and the same for its parts."""
        result = {"value": self.value} if self.error is None else {"error": self.error}
        parts = {"parts": [part.as_json() for part in self.parts]} if self.parts else {}
        return {"expression": self.expression, **result, **parts}

    def lines_behind(self, start: str) -> Iterator[str]:
        """Yield a line of text that begins with `start`, and a line for each part."""
        found = dumps(self.value, ensure_ascii=False) if self.error is None else f"fails: {self.error}"
        yield f"{start}{' '.join(self.expression.split())}: {excerpt(found, LONGEST_SHOWN)}"
        indent = " " * (len(start) - len(start.lstrip()) + 4)
        for part in self.parts:
            yield from part.lines_behind(indent)


@dataclass(frozen=True, slots=True)
class Sending(Printable):
    """A copy of the message for one destination. If it would fail, `subject` is None and `problem` is the reason.

    `depends_on` names what decides whether this copy is sent: the `key` of the message, with certainty, or the
    `weight`, the `health` or the `mirror` share of the destination. None if the expressions alone decide.
    """

    destination: Destination
    subject: str | None
    problem: str | None = None
    when: Evaluated | None = None
    depends_on: str | None = None
    share: float | None = None
    payload: bytes | None = None
    headers: Headers | None = None

    def as_json(self) -> dict[str, Any]:
        """Return connection and subject, and everything else that is known about this copy."""
        found: dict[str, Any] = {"connection": self.destination.connection, "subject": self.subject}
        if self.problem is not None:
            found["error"] = self.problem
        if self.when is not None:
            found["when"] = self.when.as_json()
        if self.depends_on is not None:
            found["depends_on"] = self.depends_on
        if self.destination.breaker is not None:
            breaker = self.destination.breaker
            found["breaker"] = {"failures": breaker.failures, "pause": format_duration(breaker.pause)}
        if self.share is not None:
            found["share"] = self.share
        if (newer := self._newer_server) is not None:
            found["note"] = newer
        if self.payload is not None:
            found["payload"] = self.payload.decode("utf-8", "replace")
        if self.headers is not None:
            found["headers"] = {name: self.headers.get_all(name) for name in self.headers}
        return found

    @property
    def _newer_server(self) -> str | None:
        return newer_mapping(self.destination.template, self.destination.mapping.source)

    def lines(self) -> Iterator[str]:
        """Yield the lines of text."""
        if self.problem is not None:
            yield f"  -> {self.destination.connection}: fails: {self.problem}"
        else:
            notes = [self.destination.kind.described]
            if (delay := self.destination.shown.get("delay")) is not None:
                notes.append(f"delay {delay}")
            if not self.destination.mapping.deterministic:
                notes.append("random for each message")
            if self.depends_on == "mirror":
                notes.append(f"mirror of {self.share:.4g} of the messages")
            elif self.depends_on == "weight":
                notes.append(f"{self.share:.4g} of the messages by weight")
            elif self.depends_on == "key":
                notes.append("selected by the key")
            elif self.depends_on == "health":
                notes.append("if it is the first destination that is connected and accepts messages")
            yield f"  -> {self.destination.connection}: {self.subject} ({', '.join(notes)})"
        if (newer := self._newer_server) is not None:
            yield f"     note: {newer}"
        if self.destination.breaker is not None:
            yield f"     breaker: {self.destination.breaker.sentence}"
        if self.when is not None:
            yield from self.when.lines_behind("     when ")
        if self.payload is not None:
            yield f"     payload: {excerpt(self.payload.decode('utf-8', 'replace'), LONGEST_SHOWN)}"
        if self.headers is not None:
            for name, value in self.headers.pairs():
                yield f"     header {name}: {excerpt(value, LONGEST_SHOWN)}"


@dataclass(frozen=True, slots=True)
class NotTaken(Printable):
    """A destination that would not get the message, and the reason."""

    destination: Destination
    why: str
    when: Evaluated | None = None

    def as_json(self) -> dict[str, Any]:
        """Return connection and template of the destination, and the reason."""
        found: dict[str, Any] = {"connection": self.destination.connection, "template": self.destination.template}
        return found | {"why": self.why} | ({} if self.when is None else {"when": self.when.as_json()})

    def lines(self) -> Iterator[str]:
        """Yield the lines of text."""
        yield f"  not to {self.destination.connection}: {self.destination.template}: {self.why}"
        if self.when is not None:
            yield from self.when.lines_behind("     when ")


@dataclass(frozen=True, slots=True)
class HandlerTypes:
    """The JSON schemas of the `body` and the `answer` of a handler, or the `problem` why they are unknown."""

    schemas: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the schemas that there are, or the problem."""
        return dict(self.schemas) if self.problem is None else {"problem": self.problem}

    def lines(self) -> Iterator[str]:
        """Yield a line of text for each schema."""
        if self.problem is not None:
            yield f"    its types are unknown: {excerpt(self.problem, LONGEST_SHOWN)}"
        for part, schema in self.schemas.items():
            yield f"    {part}: {excerpt(dumps(schema, ensure_ascii=False), LONGEST_SHOWN)}"


@dataclass(frozen=True, slots=True)
class PartitionOfMessage(Printable):
    """The partition that a message is in, with the durable that delivers it.

    It is one of `copy`, unless the `stream` of the route has the partitions itself, which only the server knows.
    """

    number: int
    count: int
    durable: str
    stream: str
    copy: str

    def as_json(self) -> dict[str, Any]:
        """Return the number, from 0, of how many, the durable, and the stream that has the partitions."""
        found = {"number": self.number, "count": self.count, "durable": self.durable}
        return found | {"stream": self.stream, "copy": self.copy}

    def lines(self) -> Iterator[str]:
        """Yield the line of text."""
        where = f"durable {self.durable} of stream {self.copy}, a copy of {self.stream}"
        yield f"  partition {self.number} of {self.count}: {where} (of {self.stream} if that has the partitions itself)"


@dataclass(slots=True)
class RouteExplanation(Printable):
    """The result for one route with this number of `workers`.

    `error` is set if the message would fail, and `filtered` if it would be filtered out; each contains the reason.
    `schema` is the name of the schema file, `fits` whether the body fits it; None if the message has no payload.
    """

    plan: RoutePlan
    sendings: list[Sending] = field(default_factory=list)
    not_taken: list[NotTaken] = field(default_factory=list)
    when: Evaluated | None = None
    key: Evaluated | None = None
    per: Evaluated | None = None
    handler: HandlerTypes | None = None
    schema: str | None = None
    fits: bool | None = None
    filtered: str | None = None
    error: str | None = None
    reason: str = EvaluationError.reason
    assumed: bool = False
    workers: int = 1
    partition: PartitionOfMessage | None = None

    @property
    def fails(self) -> bool:
        """True if the message would fail; the failure of a mirror does not count."""
        return self.error is not None or any(
            sending.problem is not None and sending.destination.mirror is None for sending in self.sendings
        )

    def as_json(self) -> dict[str, Any]:
        """Return the name and the copies, and each decision that led to them."""
        found: dict[str, Any] = {
            "name": self.plan.name,
            "destinations": [sending.as_json() for sending in self.sendings],
        }
        if self.partition is not None:
            found["partition"] = self.partition.as_json()
        if self.plan.decides:
            found["strategy"] = self.plan.settings.strategy
        for name, evaluated in (("when", self.when), ("key", self.key)):
            if evaluated is not None:
                found[name] = evaluated.as_json()
        limit = self.plan.settings.limit
        if limit is not None:
            per = {} if self.per is None else {"per": self.per.as_json()}
            found["limit"] = {"rate": format_rate(limit.rate), "burst": limit.most_at_once, **per}
        if self.schema is not None:
            found["schema"] = {"file": self.schema, "fits": self.fits}
        if self.handler is not None:
            found["handler"] = {"name": self.plan.settings.handler, **self.handler.as_json()}
        if self.not_taken:
            found["not_taken"] = [destination.as_json() for destination in self.not_taken]
        if self.filtered is not None:
            found["filtered"] = self.filtered
        if self.error is not None:
            found["error"] = {"reason": self.reason, "detail": self.error}
        if sentence := guarantee(self.plan.settings, self.workers):
            found["guarantee"] = sentence
        if self.assumed:
            found["assumed"] = {"sequence": 1, "deliveries": 1, "time": "now"}
        return found

    def lines(self) -> Iterator[str]:
        """Yield the lines of text."""
        plan = self.plan
        source = plan.settings.source
        # The configured subjects are expected in the stream; without any, only the server knows what it takes.
        known = bool(source.subjects) or not source.kind.is_stored
        condition = "" if known else f", if {source.kind.described(source)} takes this subject"
        yield f"route {plan.name} takes it from {source_of(plan)}{condition}"
        if sentence := guarantee(plan.settings, self.workers):
            yield f"  {sentence}"
        if self.partition is not None:
            yield from self.partition.lines()
        if self.assumed:
            yield "  assumed: the first message of its stream, stored now, delivered once"
        if self.when is not None:
            yield from self.when.lines_behind("  when ")
        if self.filtered == reasons.WHEN:
            yield "  filtered: its when is false"
            return
        if self.schema is not None:
            judged = {None: "the body must fit it", True: "the body fits", False: "the body does not fit"}
            yield f"  schema {self.schema}: {judged[self.fits]}"
        if plan.settings.handler is not None and (self.error is None or self.reason == reasons.INVALID_BODY):
            yield f"  handler {plan.settings.handler} may change the message or filter it out"
        if self.handler is not None:
            yield from self.handler.lines()
        if plan.settings.respond and self.error is None:
            yield "  the result of the handler is also sent to the reply subject of the message"
            yield f"    if that is {' or '.join(['an inbox', *plan.settings.reply_to])}"
        if plan.settings.strategy != "all":
            yield f"  strategy {plan.settings.strategy}"
        if self.key is not None:
            yield from self.key.lines_behind("  key ")
        if plan.settings.limit is not None:
            yield f"  limit {plan.settings.limit.sentence}"
        if self.per is not None:
            yield from self.per.lines_behind("    each ")
        for sending in self.sendings:
            yield from sending.lines()
        for destination in self.not_taken:
            yield from destination.lines()
        if self.filtered is not None:
            yield "  filtered: no destination takes it"
        if self.error is not None:
            yield f"  fails: {self.error}"


@dataclass(frozen=True, slots=True)
class Explanation(Printable):
    """The result for a message with this subject. `plans` has all routes of the configuration."""

    subject: str
    plans: Sequence[RoutePlan]
    routes: Sequence[RouteExplanation]

    def as_json(self) -> dict[str, Any]:
        """Return the subject and the result for each route that takes it."""
        return {"subject": self.subject, "routes": [route.as_json() for route in self.routes]}

    def lines(self) -> Iterator[str]:
        """Yield the lines of text."""
        if not self.routes:
            yield "no route takes it; the routes take:" if self.plans else "no route takes it: there are no routes"
            for plan in self.plans:
                yield f"  {plan.name}: {source_of(plan)}"
        for route in self.routes:
            yield from route.lines()

    def difference(self, expected: Sequence[str]) -> str | None:
        """Return the difference if the message can't be sent to exactly these subjects, else None.

        If a weight, the health of destinations or the share of a mirror decides, any possible result is accepted.
        """
        failing = [route.plan.name for route in self.routes if route.fails]
        if failing:
            return f"the message fails in {', '.join(failing)}"
        # Each entry has the possible subjects of one copy; None if the copy may not be sent.
        copies: list[list[str | None]] = []
        for route in self.routes:
            alternatives: list[str | None] = []
            for sending in route.sendings:
                if sending.subject is None:
                    continue
                if sending.depends_on in (None, "key") or sending.share == 1:
                    copies.append([sending.subject])
                elif sending.depends_on == "mirror":
                    copies.append([sending.subject, None])
                else:
                    alternatives.append(sending.subject)
            if alternatives:
                copies.append(alternatives)
        left = Counter(expected)
        if _can_be(copies, left):
            return None
        goes = Counter(subjects[0] for subjects in copies if subjects[0] is not None and subjects[-1] is not None)
        missing, more = sorted((left - goes).elements()), sorted((goes - left).elements())
        differences = [f"it is not sent to {', '.join(missing)}"] if missing else []
        return "; ".join(differences + ([f"it is sent to {', '.join(more)}"] if more else []))


def _can_be(copies: Sequence[Sequence[str | None]], left: Counter[str]) -> bool:
    """Return True if the copies can have exactly the subjects in `left`."""
    if not copies:
        return not left.total()
    first, *rest = copies
    for subject in first:
        if subject is None:
            if _can_be(rest, left):
                return True
        elif left[subject] > 0:
            left[subject] -= 1
            possible = _can_be(rest, left)
            left[subject] += 1
            if possible:
                return True
    return False


def source_of(plan: RoutePlan) -> str:
    """Return a description of the source of a route."""
    source = plan.settings.source
    return f"{plan.connection}: {source.kind.described(source)}"
