"""Find out what would happen to a message, for `router-trio explain`.

The decisions are made by the code of the router (`routing.route_plans`, `routing.policy`, `subjects.mapping`). Nothing
is connected or sent, and no handler is called: it is imported for the types of its body and answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from json import loads
from time import time_ns
from typing import TYPE_CHECKING, Any

from router_trio.cli.configuration import types_of_handler
from router_trio.cli.explanation import (
    Evaluated,
    Explanation,
    HandlerTypes,
    NotTaken,
    PartitionOfMessage,
    RouteExplanation,
    Sending,
)
from router_trio.errors import (
    BodyError,
    EvaluationError,
    HandlerError,
    InvalidBodyError,
    LoopError,
    MappingError,
    reasons,
)
from router_trio.protocol.control_headers import ControlHeaders
from router_trio.protocol.framing import MAX_MESSAGE
from router_trio.protocol.headers import decode, encode
from router_trio.routing.policy import hops
from router_trio.routing.route_plans import Destination, RoutePlan, routes_for
from router_trio.settings.routes.sources.partitioned import derived_stream, durables, partitioning_of

if TYPE_CHECKING:
    # Only for type checkers: the evaluator is imported only for routes that have an expression.
    from router_trio.expressions.expression import Expression
    from router_trio.expressions.message import Facts


@dataclass(slots=True)
class Arrived:
    """The message, and the facts about it that the expressions of a route can use."""

    subject: str
    block: bytes
    payload: bytes
    facts: Facts | None = None


def explain_message(
    plans: Sequence[RoutePlan], subject: str, block: bytes = b"", payload: bytes = b"", *, workers: int = 1
) -> Explanation:
    """Return what the router would do with a message that arrives on `subject`, which must be valid."""
    routes = [_explained(plan, subject, block, payload, workers) for plan in routes_for(plans, subject)]
    return Explanation(subject, plans, routes)


def _explained(plan: RoutePlan, subject: str, block: bytes, payload: bytes, workers: int) -> RouteExplanation:
    found = RouteExplanation(plan, workers=workers, partition=_partition(plan, subject))
    message = Arrived(subject, block, payload)
    if plan.expressions or plan.checks:
        from router_trio.expressions.message import MESSAGE_VARIABLES, Facts

        found.assumed = any(expression.reads - MESSAGE_VARIABLES.keys() - {"stream"} for expression in plan.expressions)
        stream, reader = plan.stream or "", plan.reader()
        message.facts = Facts(
            subject, block, payload, reader, stream=stream, sequence=1, deliveries=1, time_ns=time_ns()
        )
    if plan.when is not None:
        found.when = _evaluated(plan.when, message.facts)
        found.error = found.when.error
        if found.when.value is not True:
            found.filtered = reasons.WHEN if found.error is None else None
            return found
    if limit := plan.hop_limit:
        try:
            hops.check(limit, block)
        except LoopError as error:
            found.error, found.reason = str(error), error.reason
            return found
    if plan.settings.schema_file is not None:
        found.schema = plan.settings.schema_file.name
        if payload and not _fits(plan, message, found):
            return found
    if plan.key is not None:
        found.key = _evaluated(plan.key, message.facts)
        if plan.settings.goes_by_key(plan.settings.handler is not None):
            found.error = found.key.error
    if plan.per is not None:
        found.per = _evaluated(plan.per, message.facts)
        found.error = found.error or found.per.error
    if plan.settings.handler is not None and found.error is None:
        _look_at_handler(plan.settings.handler, found, payload)
    if found.error is None:
        _choose(found, message)
    return found


def _fits(plan: RoutePlan, message: Arrived, found: RouteExplanation) -> bool:
    """Return True if the payload fits the schema of the route; else add the reason to `found`."""
    assert plan.schema is not None
    try:
        plan.schema.require(message.facts)
    except BodyError as error:
        found.error, found.reason = str(error), error.reason
    found.fits = found.error is None
    return found.fits


def _partition(plan: RoutePlan, subject: str) -> PartitionOfMessage | None:
    source = plan.settings.source
    partitioning, consumer = partitioning_of(source), source.kind.consumer(source)
    if partitioning is None or consumer is None:
        return None
    number = partitioning.partition_of(subject)
    durable = durables(source)[number]
    return PartitionOfMessage(number, partitioning.count, durable, consumer[0], derived_stream(*consumer))


def _look_at_handler(name: str, found: RouteExplanation, payload: bytes) -> None:
    """Add the types of the handler to `found`, and whether it takes the payload, if there is one."""
    try:
        types = types_of_handler(name)
    except HandlerError as error:
        found.handler = HandlerTypes(problem=str(error))
        return
    found.handler = HandlerTypes(types.schemas)
    if types.body is not None and payload:
        try:
            types.body.decode(payload)
        except InvalidBodyError as error:
            found.error, found.reason = str(error), error.reason


def _choose(found: RouteExplanation, message: Arrived) -> None:
    """Add the destinations that would get the message to `found`, and those that would not."""
    plan = found.plan
    name = plan.settings.strategy
    try:
        chosen = set(plan.strategy().choose(message.facts))
    except EvaluationError as error:
        found.error = str(error)
        chosen = set()
    weights = sum(destination.weight for destination in plan.destinations if destination.mirror is None)
    taken = False
    for index, destination in enumerate(plan.destinations):
        mirror, when = destination.mirror is not None, None
        if destination.when is not None and not (name == "first_match" and taken):
            when = _evaluated(destination.when, message.facts)
        if mirror and not chosen:
            found.not_taken.append(
                NotTaken(destination, "a mirror gets a copy only if another destination gets the message")
            )
        elif found.error is not None and (when is None or when.error is None):
            found.not_taken.append(NotTaken(destination, "the message fails", when))
        elif mirror:
            share = float(destination.mirror or 0)
            found.sendings.append(_sending(destination, message, None, "mirror", share))
        elif name in ("weighted", "fallback"):
            share_of = destination.weight / weights if name == "weighted" else None
            depends_on = "weight" if name == "weighted" else "health"
            found.sendings.append(_sending(destination, message, None, depends_on, share_of))
        elif index in chosen:
            found.sendings.append(_sending(destination, message, when, "key" if name == "sticky" else None))
            taken = True
        else:
            found.not_taken.append(NotTaken(destination, _why_not(name, when), when))
    if not chosen and found.error is None:
        found.filtered = reasons.UNMATCHED


def _why_not(strategy: str, when: Evaluated | None) -> str:
    if when is not None:
        return "its when is false" if when.error is None else "its when fails, so the message fails"
    return "the key selects another destination" if strategy == "sticky" else "an earlier destination takes it"


def _sending(
    destination: Destination,
    message: Arrived,
    when: Evaluated | None,
    depends_on: str | None = None,
    share: float | None = None,
) -> Sending:
    transform = destination.transform()
    subject, problem, changed, headers = None, None, None, None
    try:
        subject = destination.subject_for(message.subject)
        if (delay := destination.delays()) is not None:
            delay.due_ns(message.facts, time_ns())  # the copy fails if that has no value
        if transform is not None:
            if destination.payload is not None:
                changed = transform.payload(message.facts, message.payload, MAX_MESSAGE)
            if transform.changes_headers:
                carried = message.block and ControlHeaders(destination.keep).removed(message.block)
                headers = decode(transform.headers(message.facts, carried, MAX_MESSAGE))
        counting = destination.hops()
        if counting is not None and (counting.each or hops.is_counted(message.block)):
            block = encode(headers) if headers is not None else ControlHeaders(destination.keep).removed(message.block)
            lines = counting.lines(message.block) or hops.FIRST
            headers = decode(hops.with_lines(hops.without(block), lines))
    except (MappingError, EvaluationError) as error:
        subject, problem = None, str(error)
    return Sending(destination, subject, problem, when, depends_on, share, changed, headers)


def _evaluated(expression: Expression, facts: Facts | None) -> Evaluated:
    from router_trio.expressions.expression import trace

    value: Any
    try:
        value = expression.evaluate(facts)
    except EvaluationError as error:
        value = error
    parts: dict[str, Evaluated] = {}
    for text, found in trace(expression, facts)[:-1]:  # the last is the entire expression
        # The caller knows the message itself.
        if text not in ("body", "headers", "payload", "tokens") or isinstance(found, EvaluationError):
            parts[text] = _part(text, found)
    return _part(expression.text, value, list(parts.values()))


def _part(text: str, value: Any, parts: Sequence[Evaluated] = ()) -> Evaluated:
    from router_trio.expressions.output import json_of

    if isinstance(value, EvaluationError):
        return Evaluated(text, None, str(value), parts)
    try:
        in_json: Any = repr(value) if isinstance(value, bytes) else loads(json_of(value, MAX_MESSAGE))
    except EvaluationError:  # JSON has no such value
        in_json = str(value)
    return Evaluated(text, in_json, None, parts)
