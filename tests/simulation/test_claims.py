"""Events that claim a loss, a limit or the like: each is classified, and a judge tells true ones from false ones."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import events
from router_trio.events import Event, catalogue
from router_trio.link import ConsumerSpec
from router_trio.protocol.stream_config import StreamConfig
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish
from tests.simulation.claims import CLAIM_NOTHING, JUDGES, World, never, wrong
from tests.simulation.run import simulate
from tests.simulation.schedule import Plan, Step, Target

AT = 50.0
"""The time of each event. The faults of `STEPS` happened shortly before."""

DURABLE = {"broker": "a", "durable": "r0"}
STEPS = (
    Step(45.0, "publish denied", 5.0, {"broker": "a", "pattern": "out.>"}),
    Step(45.0, "full stream", 1.0, {"broker": "a", "more": 0}),
    Step(45.0, "election", 1.0, {"broker": "a", "stream": "OUT", "seconds": 1.0}),
    Step(45.0, "durable deleted", 0.0, DURABLE),
    Step(45.0, "durable paused", 1.0, DURABLE),
    Step(45.0, "durable limited", 0.0, DURABLE),
    Step(45.0, "durable narrowed", 0.0, DURABLE),
    Step(45.0, "restored stream", 0.0, {"broker": "a", "count": 1}),
)
OF_ANOTHER = tuple(Step(step.at, step.kind, step.seconds, {**step.what, "broker": "b"}) for step in STEPS)
"""Faults of the same kinds at another broker."""

TARGETS = (Target("a", True, breaker={"failures": 3, "pause": 1.0}),)
PLAN = Plan("r0", "a", True, TARGETS, None, {"stream": "IN", "durable": "r0", "filter": "in.*"}, retry={"attempts": 2})
SPEC = ConsumerSpec("IN", "r0", (), ack_wait=1.0, max_deliver=1, max_ack_pending=100)
OPTIONS = {"max_pending_operations": 20, "max_pending_bytes": 2000, "on_pending_full": "reject"}


def world(*, steps: tuple[Step, ...] = (), at_limit: int = 0, **changes: Any) -> World:
    """Return a world in which nothing has happened: the route r0 on the broker a, and two buckets."""
    broker = FakeBroker()
    server = broker._server
    for name in ("IN", "OUT", "EARLY", "KV_x", "KV_y"):
        server.ensure_stream(StreamConfig(name, (f"$KV.{name[3:]}.>" if "KV" in name else f"{name.lower()}.>",)), 0.0)
    for bucket, at in (("x", 1.0), ("y", 4.0)):
        server.streams[f"KV_{bucket}"].store(Publish(b"$KV.%b.key" % bucket.encode(), b"", b"", b"1"), at)
    server.streams["OUT"].duplicate_window = 120.0
    server.streams["EARLY"].acks_before_writing = True
    server.open_consumer(SPEC)
    server.consumers["IN", "r0"]._at_the_limit.update(range(at_limit))
    values: dict[str, Any] = {
        "sources": {"r0": ("a", "IN", "r0"), "copy": ("a", "KV_x", "copy")},
        "plans": {"r0": PLAN},
        "connections": {"a": OPTIONS},
        "rollbacks": lambda _: sum(step.kind == "restored stream" for step in steps if step.what["broker"] == "a"),
    }
    return World(lambda _: broker, steps=steps, **values | changes)


def replaced(**changes: Any) -> dict[str, Any]:
    """Return the plan of the route with other fields, as an argument of `world`."""
    fields = {name: getattr(PLAN, name) for name in Plan.__slots__}
    return {"plans": {"r0": Plan(**fields | changes)}}


OF_DURABLE = {"route": "r0", "stream": "IN", "durable": "r0"}
GIVEN_UP = {"route": "r0", "attempts": 2, "stream": "IN", "sequence": 1, "subject": "in.x"}
DOUBLED = {"connection": "a", "stream": "OUT", "count": 1, "outage_seconds": 40.0, "window_assumed": False}
FULL = {"connection": "a", "queue_size": 20, "max_size": 20}
CONFLICT = {"route": "copy", "subject": "$KV.x.key", "stream": "KV_x", "sequence": 1, "connection": "a"}
NOT_STORED = {"route": "r0", "connection": "a", "subject": "out.x", "detail": ""}
SCHEDULES = {"route": "r0", "stream": "OUT", "scheduled": 1, "fired": 0, "there": 0, "cancelled": 0}

CASES: tuple[tuple[type[Event], dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
    # an event, its fields; then how it or the world differs where it is true, and where it is false
    (events.DeliveryLimitReached, {**OF_DURABLE, "count": 2, "from_sequence": 1, "to_sequence": 9},
     {"at_limit": 2}, {"at_limit": 1}),
    (events.MessageDeadLettered, {**GIVEN_UP, "reason": "schema"}, {"has_letter": lambda *_: True}, {}),
    (events.MessageDeadLettered, {**GIVEN_UP, "reason": "limit"},
     {"has_letter": lambda *_: True, **replaced(retry={"not": ["limit"]})}, {"has_letter": lambda *_: True}),
    (events.MessageGivenUp, {**GIVEN_UP, "reason": "schema"}, {}, replaced(dead_letter="a")),
    (events.MessageGivenUp, {**GIVEN_UP, "reason": "shutdown"},
     {**replaced(stream=False), "is_ending": lambda: True}, {}),
    (events.DeadLetterNotStored, {"route": "r0", "reason": "limit"}, replaced(dead_letter="a"), {}),
    (events.RouteLimited, {"route": "r0", "rate": "1/s"}, replaced(limit={"rate": "1/s"}), {}),
    (events.HandlerLeftBehind, {"route": "r0", "count": 2}, replaced(handler="sync", concurrency=2),
     replaced(handler="sync")),
    (events.PublishFailed, {"connection": "a", "reason": "permission_denied"}, {"steps": STEPS}, {"steps": OF_ANOTHER}),
    (events.PublishWithAckFailed, {"connection": "a", "reason": "permission_denied"}, {"steps": STEPS}, {}),
    (events.PublishFailedOpen, {"connection": "a", "reason": "limit"}, {"connections": {"a": {"fail_open": True}}}, {}),
    (events.QueueFull, {**FULL, "reason": "dropped_oldest"},
     {"connections": {"a": {**OPTIONS, "on_pending_full": "drop_oldest"}}}, {}),
    (events.QueueFull, {**FULL, "reason": "rejected", "max_size": 2000}, {},
     {"connections": {"a": {**OPTIONS, "max_pending_bytes": 0}}}),
    (events.PendingDropped, {"connection": "a", "reason": "expired"},
     {"connections": {"a": {"pending_max_age": 2}}}, {}),
    (events.PendingDropped, {"connection": "a", "reason": "shutdown"}, {"is_ending": lambda: True}, {}),
    (events.AckFailed, {"connection": "a", "reason": "permission_denied"}, {"steps": STEPS}, {}),
    (events.NakFailed, {"connection": "a", "reason": "permission_denied"}, {"steps": STEPS}, {}),
    (events.RefusalNotAttributed, {"connection": "a", "detail": ""}, {"steps": STEPS}, {}),
    (events.StreamWentBack, {"route": "r0", "stream": "IN", "detail": ""}, {"steps": STEPS}, {"steps": OF_ANOTHER}),
    (events.ConsumerReset, {**OF_DURABLE, "from_sequence": 9, "to_sequence": 1},
     {"steps": STEPS}, {"steps": OF_ANOTHER}),
    (events.ConsumerPaused, {**OF_DURABLE, "detail": ""}, {"steps": STEPS}, {"steps": OF_ANOTHER}),
    (events.ConsumerLimitsRemoved, {**OF_DURABLE, "detail": ""}, {"steps": STEPS}, {"steps": OF_ANOTHER}),
    (events.ConsumerDiffers, {**OF_DURABLE, "detail": ""}, {"steps": STEPS}, {"steps": OF_ANOTHER}),
    (events.QuorumLost, {"connection": "a", "stream": "OUT", "detail": ""}, {"steps": STEPS}, {"steps": OF_ANOTHER}),
    (events.DestinationNotStored, {**NOT_STORED, "reason": "stream_full"}, {"steps": STEPS}, {"steps": OF_ANOTHER}),
    (events.DestinationNotStored, {**NOT_STORED, "reason": "permission_denied"}, {"steps": STEPS}, {}),
    (events.BreakerOpened, {**NOT_STORED, "reason": "limit", "failed_count": 3, "pause_seconds": 1.0, "detail": None},
     {}, replaced(targets=(Target("a", True),))),
    (events.RoutePartitionLost, {**OF_DURABLE, "partition": 1, "reason": "", "detail": ""},
     {"is_calm": lambda: False}, {}),
    (events.RoutePartitionsUnled, {**OF_DURABLE, "count": 2, "detail": ""}, {"unled": lambda: 2}, {"unled": lambda: 1}),
    (events.DuplicatesPossible, {**DOUBLED, "at": 200.0, "unanswered_seconds": 121.0},
     {"window_seconds": 120.0}, {"window_seconds": 60.0}),
    (events.DuplicatesPossible, {**DOUBLED, "at": 200.0, "window_seconds": 120.0},
     {"unanswered_seconds": 121.0}, {"unanswered_seconds": 119.0}),
    (events.BucketConflict, {**CONFLICT, "kept_from": "KV_y"}, {"later": 3.0}, {"later": 2.0}),
    (events.BucketConflict, {**CONFLICT, "later": 3.0}, {"kept_from": "KV_y"}, {"kept_from": "KV_x"}),
    (events.FilterOutside, {"route": "r0", "stream": "IN", "subjects": "in.>"}, {"filter": "x.*"}, {"filter": "in.*"}),
    (events.StreamAcksEarly, {"connection": "a"}, {"stream": "EARLY"}, {"stream": "OUT"}),
    (events.DestinationUnconfirmed, {"route": "r0", "connection": "a", "subject": "out.x"},
     {"stream": "OUT"}, {"stream": "NONE"}),
    (events.RouteScheduleLost, {**SCHEDULES, "lost": 1}, {"schedules_gone": lambda _: 1}, {}),
)  # fmt: skip
"""Cases of each judge: a true event, and a false one."""


def event_in(kind: type[Event], fields: dict[str, Any], differs: dict[str, Any]) -> tuple[Event, World]:
    """Return an event and its world, which differ in this way."""
    of_event = {name: value for name, value in differs.items() if name in kind.fields}
    of_world = {name: value for name, value in differs.items() if name not in kind.fields}
    values = {"at": AT, **fields, **of_event}
    return kind(**{name: value for name, value in values.items() if value is not None}), world(**of_world)


@pytest.mark.parametrize(("kind", "fields", "true", "false"), CASES)
def test_a_judge_tells_a_true_event_from_a_false_one(
    kind: type[Event], fields: dict[str, Any], true: dict[str, Any], false: dict[str, Any]
) -> None:
    assert list(wrong(*event_in(kind, fields, true))) == []
    (detail,) = wrong(*event_in(kind, fields, false))
    assert detail.startswith(f"{kind.code} is false: ")


def test_each_judge_has_a_case() -> None:
    assert {kind for kind, *_ in CASES} == {kind for kind, judge in JUDGES.items() if judge is not never}


def test_each_event_has_a_judge_or_claims_nothing_of_the_kind() -> None:
    assert JUDGES.keys() | CLAIM_NOTHING == set(catalogue())
    assert not JUDGES.keys() & CLAIM_NOTHING


def test_a_rollback_of_a_stream_is_reported_once() -> None:
    after = world(steps=STEPS)
    event = events.StreamWentBack(at=AT, route="r0", stream="IN", detail="")
    assert list(wrong(event, after)) == []
    assert list(wrong(event, after))


def test_faults_of_long_ago_explain_nothing_that_lookups_show() -> None:
    event = events.DestinationNotStored(at=AT + 60, reason="stream_full", **NOT_STORED)
    assert list(wrong(event, world(steps=STEPS)))


def test_a_forged_advisory_about_a_silent_consumer_is_logged_as_no_lost_quorum() -> None:
    outcome = simulate(60_000_480)
    assert any(step.kind == "advisories forged" for step in outcome.schedule.steps)
    assert not outcome.wrong
