"""`router-trio explain`: say what would happen to a message.

The decisions are those of the router (`routing.plans`, `subjects.mapping`): nothing is connected, sent or called.
"""

from __future__ import annotations

import json as encoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from router_trio.cli import outcome
from router_trio.errors import MappingError, PublishError, SubjectError

if TYPE_CHECKING:
    from router_trio.routing.plans import Destination, RoutePlan


def explain(
    config: Annotated[Path, Parameter(help="The configuration, a TOML file.")],
    subject: Annotated[str, Parameter(help="The subject of the message.")],
    /,
    *,
    header: Annotated[
        tuple[str, ...],
        Parameter(
            help="A header of the message, K=V; may be repeated.",
            show_default=False,
            allow_leading_hyphen=True,
        ),
    ] = (),
    data: Annotated[
        str, Parameter(help="The payload of the message.", show_default=False, allow_leading_hyphen=True)
    ] = "",
    json: Annotated[bool, Parameter(help="Print JSON.", show_default=False)] = False,
) -> int:
    """Show what would happen to a message.

    Prints the routes that would take it, and the subjects to which they
    would publish it. Connects to nothing and sends nothing.

    Headers and payload don't decide which routes take a message; they are
    checked, and their size is shown. A route's handler is named but not
    called: it may change the message, or filter it out.

    For example:

        router-trio explain router.toml orders.7.created
        router-trio explain router.toml orders.7.created --json
    """
    from router_trio.protocol import headers
    from router_trio.routing.plans import compile_routes
    from router_trio.settings import Settings
    from router_trio.subjects.patterns import validate_subject

    try:
        validate_subject(subject)
        block = headers.encode(headers.Headers(_pairs(header)))
    except (SubjectError, PublishError) as error:
        raise outcome.UsageError(str(error)) from None
    plans = compile_routes(Settings.load(config))
    explanation = explain_subject(plans, subject)
    if json:
        print(encoder.dumps(explanation.as_json(), indent=2))
    else:
        payload = data.encode("utf-8", "surrogateescape")
        print(f"message {subject}: {len(payload)} bytes of payload, {len(block)} bytes of headers")
        print("\n".join(explanation.lines()))
    return outcome.DONE


@dataclass(frozen=True, slots=True)
class Sending:
    """One destination of a matching route. `subject` is None when the mapping refuses; then `problem` says why."""

    destination: Destination
    subject: str | None
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The form of the contract; a destination that refuses has an `error` as well."""
        found = {"connection": self.destination.connection, "subject": self.subject}
        return found if self.problem is None else found | {"error": self.problem}

    def line(self) -> str:
        """One line for people."""
        if self.problem is not None:
            return f"  -> {self.destination.connection}: fails: {self.problem}"
        notes = ["JetStream, waits for the PubAck" if self.destination.jetstream else "core publish"]
        if not self.destination.mapping.deterministic:
            notes.append("drawn at random for each message")
        return f"  -> {self.destination.connection}: {self.subject} ({', '.join(notes)})"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen to a message with this subject. `plans` are all routes there are."""

    subject: str
    plans: Sequence[RoutePlan]
    routes: Sequence[tuple[RoutePlan, Sequence[Sending]]]

    def as_json(self) -> dict[str, Any]:
        """The form of the contract."""
        return {
            "subject": self.subject,
            "routes": [
                {"name": plan.name, "destinations": [sending.as_json() for sending in sendings]}
                for plan, sendings in self.routes
            ],
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        if not self.routes:
            yield "no route takes it; these routes take:" if self.plans else "no route takes it: there are no routes"
            for plan in self.plans:
                yield f"  {plan.name}: {_source(plan)}"
        for plan, sendings in self.routes:
            holds = f", if stream {plan.stream} holds this subject" if _depends_on_stream(plan) else ""
            yield f"route {plan.name} takes it from {_source(plan)}{holds}"
            if plan.settings.handler is not None:
                yield f"  handler {plan.settings.handler} may change it or filter it out"
            for sending in sendings:
                yield sending.line()


def explain_subject(plans: Sequence[RoutePlan], subject: str) -> Explanation:
    """Return what the router would do with a message that comes on `subject`, which must be valid."""
    from router_trio.routing.plans import routes_for

    routes = [
        (plan, [_sending(destination, subject) for destination in plan.destinations])
        for plan in routes_for(plans, subject)
    ]
    return Explanation(subject, plans, routes)


def _sending(destination: Destination, subject: str) -> Sending:
    try:
        return Sending(destination, destination.subject_for(subject))
    except MappingError as error:
        return Sending(destination, None, str(error))


def _depends_on_stream(plan: RoutePlan) -> bool:
    # A filter names subjects that whoever wrote it expects in the stream; without one only the server knows them.
    return plan.stream is not None and plan.settings.source.filter is None


def _source(plan: RoutePlan) -> str:
    source = plan.settings.source
    if source.stream is not None:
        return f"{plan.connection}: stream {source.stream}" + (f", filter {source.filter}" if source.filter else "")
    return f"{plan.connection}: {plan.pattern}" + (f", queue group {source.queue}" if source.queue else "")


def _pairs(headers: Sequence[str]) -> Iterator[tuple[str, str]]:
    for header in headers:
        name, equals, value = header.partition("=")
        if not equals:
            raise outcome.UsageError(f"--header {header!r} is not of the form K=V, such as --header Nats-Msg-Id=7")
        yield name, value
