"""Each permission of the table, revoked in turn on a real server: the effects are those that the table lists.

The page for users is generated from the table (`protocol/permissions.py`). So its text is tested: the events, the
metrics and `/readyz` that a row names, and that nothing else fails where it names nothing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Retry
from router_trio.nats.jetstream import members
from router_trio.nats.jetstream.rolled_back_source import ROLLED_BACK, RolledBack
from router_trio.protocol.permissions import MEMBERS, PERMISSIONS, PUBLISH, SUBSCRIBE, Permission
from router_trio.routing.handlers.calls import Handler
from router_trio.routing.stream.pulling import checks, pull_loop
from router_trio.routing.stream.retries import source as retries
from router_trio.subjects.patterns import overlaps
from tests.integration.readiness import Place, checkpoints_in, create_billing, place, refused, users
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.server_version import needs_server
from tests.support.settings import core_route, stream_route

NAMES = {
    "api": "$JS.API",
    "kv": "$KV",
    "stream": "IN",
    "durable": "router",
    "inbox_prefix": "_INBOX",
    "source": "in.*",
    "target": "OUT",
    "made": "MADE",
    "reply": "answers.>",
    "dead_letter": "dead.>",
    "domain": "*",
    "copied": "IN",
    "consumer": "billing",
    "bucket": "router-positions",
    "key": "route.billing",
    "members": MEMBERS,
    "counted": "retry.n",
    "retries": "RETRY",
}

HERE = "tests.integration.test_each_permission"
CORE = core_route("in.*", "heard.{{wildcard(1)}}")
STORED = CORE | {"to": [{"subject": "out.{{wildcard(1)}}", "jetstream": True}]}
STORED_TWICE = CORE | {"to": [{"subject": f"out.{name}", "jetstream": True} for name in "ab"]}
STREAM = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", ack_wait="2s")
STANDBY = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", ack_wait="2s", standby=True)
PARTITIONED = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", ack_wait="2s", partitions=2, partition_by=[1])
BETWEEN_BUCKETS = {
    "name": "route",
    "from": {"bucket": "in", "durable": "router", "ack_wait": "2s"},
    "to": [{"bucket": "out", "last_writer": True}],
}
OF_PARTITIONS = {
    "copied": "IN",
    "partitioned": "IN",
    "stream": "IN-router",
    "group": "IN.router",
    "group_durable": "router",
}
RETRYING = STREAM | {"retry": {"initial": "50ms"}}
DEAD_LETTERS = STREAM | {"retry": {"attempts": 1}, "dead_letter": {"subject": "dead.{{wildcard(1)}}"}}
ANSWERS = CORE | {"respond": True, "reply_to": ["answers.>"], "handler": f"{HERE}:echo"}
ACKS_WITH_ACCOUNT = "feature_flags { js_ack_fc_v2: true }\n"
MADE = ({"name": "MADE", "subjects": ["made.*"]},)
RETRY = ({"name": "RETRY", "subjects": ["retry.>"], "allow_message_schedules": True},)
SCHEDULE = {"stream": "RETRY", "prefix": "retry", "after": "10ms"}
SCHEDULED = STREAM | {"retry": {"initial": "100ms", "max": "100ms", "schedule": SCHEDULE}}
POSITIONS = ({"consumer": "billing", "route": STREAM["name"], "interval": "1s"},)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)
    monkeypatch.setattr(pull_loop, "ACKS_TESTED_EVERY", 0.2)
    monkeypatch.setattr(retries, "COUNT_EVERY", 0.3)
    monkeypatch.setattr(retries, "COUNT_AGAIN_AFTER", 0.3)


async def _send(at: Place) -> None:
    await at.client.publish("in.x", b"sent", None, "answers.here")


async def _nothing(at: Place) -> None:
    """Do nothing: the route needs the permission without it."""
    await trio.lowlevel.checkpoint()


async def _pass(at: Place) -> None:
    assert await at.probe()


async def _ask_for_services(at: Place) -> None:
    """Request an answer of all services, until the router has subscribed and noticed that it may not answer."""

    async def denied() -> bool:
        await at.client.publish("$SRV.PING", b"", None, "_INBOX.asks")
        return bool(at.watch.of("NATS_SERVICE_NOT_OFFERED"))

    await eventually(denied)


async def _find_the_durable_gone(at: Place) -> None:
    """Make a route check whether its stream is still the same."""
    assert await at.probe()
    await at.streams.delete_consumer("IN", "router")


async def _go_away_and_return(at: Place) -> None:
    """Give up the lead, which another process could take at once if it was allowed, and request it again."""
    await at.until_ready()
    assert await at.probe()
    await at.live.reload(at.settings.model_copy(update={"routes": []}))
    await at.live.reload(at.settings)


async def _copy_one(at: Place) -> None:
    """Have a message copied, by which a rollback of its stream would be noticed."""
    await at.until_ready()
    assert await at.probe()


async def _record_a_rollback(at: Place) -> None:
    """Record that a stream was rolled back, as a process that has ended since then."""
    await _copy_one(at)
    record = RolledBack(start=2, reused=(0,), at=1).as_text()
    await at.streams.edit_stream("IN-router", metadata={ROLLED_BACK: record})


async def _left_unacked(streams: JetStream) -> None:
    """Have a message delivered to a process that ended without an ack."""
    await streams.create_consumer("IN", "router", ack_policy="explicit", ack_wait=3 * 10**9, filter_subject="in.*")
    await streams.publish("in.x", b"left")
    hand = await streams.client.subscribe("hand")
    await streams.client.publish("$JS.API.CONSUMER.MSG.NEXT.IN.router", b'{"batch": 1}', None, "hand")
    await hand.next()


async def _dead_letters(streams: JetStream) -> None:
    await streams.create_stream("DEAD", ["dead.*"])


async def _buckets(streams: JetStream) -> None:
    """Have messages to `in.*` stored as values of a bucket, and those of its copy in `OUT`."""
    keys = {"src": "in.*", "dest": "$KV.in.{{wildcard(1)}}"}
    await streams.create_stream("KV_in", ["in.*"], subject_transform=keys, allow_rollup_hdrs=True)
    await streams.create_stream("KV_out", ["$KV.out.>"], allow_rollup_hdrs=True)
    await streams.edit_stream("OUT", sources=[{"name": "KV_out"}])


async def _moved(streams: JetStream) -> None:
    """Move a partition by hand, to a process that does not exist."""
    await streams.api(f"STREAM.CREATE.{members.STREAM}", members.bucket_config(1, "memory"))
    await streams.publish(f"$KV.{MEMBERS}.{members.key('IN', 'router', members.MOVED)}", members.moves({1: "a" * 16}))


async def fails_once(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    if message.deliveries == 1:
        raise ValueError("once")
    return message


async def retries_once(message: Message) -> Message:
    """Fail with a delay that is always scheduled. A drawn one may be below `after`."""
    await trio.lowlevel.checkpoint()
    if message.deliveries == 1:
        raise Retry(after=0.1)
    return message


async def fails_for_what_was_sent(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    if message.payload == b"sent":
        raise ValueError("always")
    return message


async def echo(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    return message


@dataclass(frozen=True)
class Case:
    """A route that needs a permission. `provoke` makes it use the permission.

    `server` is added to the configuration of the server.
    `waits`: the beginning of a reason of `/readyz`, where the route waits for something and then continues without it.
    """

    route: dict[str, Any]
    provoke: Callable[[Place], Awaitable[Any]] = _send
    names: dict[str, str] = field(default_factory=dict)
    handler: Handler | None = None
    made: tuple[dict[str, Any], ...] = ()
    positions: tuple[dict[str, Any], ...] = ()
    before: Callable[[JetStream], Awaitable[Any]] | None = None
    waits: str = ""
    server: str = ""


PARTITIONS = Case(PARTITIONED, _nothing, names=OF_PARTITIONS)
CHECKPOINTS = Case(STREAM, _nothing, positions=POSITIONS, before=create_billing)

RETRIES = Case(SCHEDULED, _nothing, made=RETRY)

CASES: dict[tuple[str, str], dict[str, Case]] = {
    (PUBLISH, "{destination}"): {
        "core": Case(CORE, names={"destination": "heard.>"}),
        "JetStream": Case(STORED, names={"destination": "out.>"}),
        "of a stream": Case(STREAM, names={"destination": "out.>"}),
    },
    (PUBLISH, "{dead_letter}"): {
        "": Case(DEAD_LETTERS, handler=fails_for_what_was_sent, before=_dead_letters),
    },
    (PUBLISH, "{reply}"): {"": Case(ANSWERS)},
    (PUBLISH, "$JS.ACK.{stream}.{durable}.>"): {
        "acks": Case(STREAM),
        "naks": Case(RETRYING, handler=fails_once),
    },
    (PUBLISH, "$JS.ACK.{domain}.*.{stream}.{durable}.>"): {"": Case(STREAM, server=ACKS_WITH_ACCOUNT)},
    (PUBLISH, "{api}.CONSUMER.MSG.NEXT.{stream}.{durable}"): {
        "": Case(STREAM),
        "the lead": Case(STANDBY),
        "the lead of partitions": Case(PARTITIONED, _nothing, {"stream": "IN-router", "durable": "*"}),
    },
    (PUBLISH, "{api}.STREAM.INFO.{stream}"): {"": Case(STREAM)},
    (PUBLISH, "{api}.CONSUMER.INFO.{stream}.{durable}"): {"": Case(STREAM)},
    (PUBLISH, "{api}.CONSUMER.DURABLE.CREATE.{stream}.{durable}"): {"": Case(STREAM)},
    (PUBLISH, "{api}.CONSUMER.UNPIN.{stream}.{durable}"): {"": Case(STANDBY, _go_away_and_return)},
    (PUBLISH, "{api}.STREAM.MSG.GET.{stream}"): {"": Case(STREAM, _find_the_durable_gone)},
    (PUBLISH, "{api}.STREAM.INFO.{copied}"): {"": PARTITIONS},
    (PUBLISH, "{api}.STREAM.CREATE.{stream}"): {"": PARTITIONS},
    (PUBLISH, "{api}.STREAM.UPDATE.{stream}"): {"": replace(PARTITIONS, provoke=_record_a_rollback)},
    (PUBLISH, "{api}.CONSUMER.INFO.{copied}.{group_durable}"): {"": PARTITIONS},
    (PUBLISH, "{api}.STREAM.INFO.KV_{members}"): {"": PARTITIONS},
    (PUBLISH, "{kv}.{members}.{group}.*"): {"": PARTITIONS},
    (PUBLISH, "{api}.STREAM.MSG.GET.KV_{members}"): {"": replace(PARTITIONS, before=_moved)},
    (PUBLISH, "{api}.STREAM.CREATE.KV_{members}"): {"": PARTITIONS},
    (PUBLISH, "{api}.STREAM.PURGE.KV_{members}"): {"": replace(PARTITIONS, provoke=_go_away_and_return)},
    (PUBLISH, "{api}.STREAM.NAMES"): {"": Case(STORED, _pass)},
    (PUBLISH, "{api}.STREAM.MSG.GET.{target}"): {
        "": Case(BETWEEN_BUCKETS, names={"target": "KV_out"}, before=_buckets),
    },
    (PUBLISH, "{api}.STREAM.INFO.{target}"): {
        "": Case(STORED, _pass),
        "of two destinations": Case(STORED_TWICE, _nothing),
    },
    (PUBLISH, "{api}.STREAM.INFO.{made}"): {"": Case(CORE, made=MADE)},
    (PUBLISH, "{api}.STREAM.CREATE.{made}"): {"": Case(CORE, made=MADE)},
    (PUBLISH, "{api}.CONSUMER.INFO.{copied}.{consumer}"): {"": CHECKPOINTS},
    (PUBLISH, "{api}.STREAM.MSG.GET.{copied}"): {"": CHECKPOINTS},
    (PUBLISH, "{api}.STREAM.MSG.GET.{partitioned}"): {"": replace(PARTITIONS, provoke=_copy_one)},
    (PUBLISH, "{api}.STREAM.INFO.KV_{bucket}"): {"": CHECKPOINTS},
    (PUBLISH, "{api}.STREAM.CREATE.KV_{bucket}"): {"": CHECKPOINTS},
    (PUBLISH, "{kv}.{bucket}.{key}"): {"": CHECKPOINTS},
    (PUBLISH, "_INBOX.>"): {"": Case(CORE, _ask_for_services)},
    (PUBLISH, "{counted}"): {"": RETRIES},
    (PUBLISH, "{api}.STREAM.PURGE.{retries}"): {"": replace(RETRIES, provoke=_send, handler=retries_once)},
    (SUBSCRIBE, "{source}"): {"": Case(CORE)},
    (SUBSCRIBE, "{inbox_prefix}.>"): {"PubAcks": Case(STORED), "of a stream": Case(STREAM)},
    (SUBSCRIBE, "$JS.ACK.{stream}.{durable}.>"): {
        "": Case(STREAM, before=_left_unacked, waits="messages that were delivered before and are not acked")
    },
    (SUBSCRIBE, "$JS.ACK.*.*.{stream}.{durable}.>"): {
        "": Case(STREAM, before=_left_unacked, waits="messages that were delivered before and are not acked")
    },
    (SUBSCRIBE, "$SRV.*"): {"": Case(CORE, _pass)},
    (SUBSCRIBE, "$SRV.*.router-trio"): {"": Case(CORE, _pass)},
    (SUBSCRIBE, "$SRV.*.router-trio.*"): {"": Case(CORE, _pass)},
    (SUBSCRIBE, "$JS.EVENT.ADVISORY.CONSUMER.*.{stream}.{durable}"): {"": Case(STREAM, _pass)},
    (SUBSCRIBE, "$JS.EVENT.ADVISORY.STREAM.*.{stream}"): {"": Case(STREAM, _pass)},
    (SUBSCRIBE, "$JS.EVENT.ADVISORY.STREAM.*.{target}"): {"": Case(STORED, _pass)},
}
"""The cases by the kind and the subject of a row, with a name each."""

WITH_FLAG = needs_server(2, 14, lacks="acks with domain and account")

ALL = [
    pytest.param(
        row,
        case,
        id=f"{row.kind} {row.subject} {name}".rstrip(),
        marks=[WITH_FLAG] if case is not None and case.server else [],
    )
    for row in PERMISSIONS
    for name, case in CASES.get((row.kind, row.subject), {"no case": None}).items()
]


def effect_of(row: Permission) -> str:
    """Return the effect of a row in the table; some rows refer to another one."""
    pulls = next(one for one in PERMISSIONS if ".MSG.NEXT." in one.subject)
    return row.refused.replace("as for pulls", pulls.refused)


def assert_adds_up(at: Place) -> None:
    outbox = at.live.connections["main"].outbox
    assert outbox.ledger.unsettled == outbox.pending + outbox.in_flight
    for route in at.live.routes:
        assert route.received_in_all == route.in_hand + sum(route.settled.values())


@pytest.mark.parametrize(("row", "case"), ALL)
async def test_the_effect_of_a_revoked_permission_is_that_of_the_table(
    row: Permission, case: Case | None, tmp_path: Path
) -> None:
    assert case is not None, f"add a case for {row.subject}: how is it needed, and what is seen without it?"
    subject = row.of(NAMES | case.names)
    config = case.server + (users(deny=[subject]) if row.kind == PUBLISH else users(deaf=[subject]))
    said = effect_of(row)
    codes, metrics = re.findall(r"(?:NATS|ROUTER)_[A-Z_]+", said), re.findall(r"router_\w+_total", said)
    async with place(
        tmp_path,
        case.route,
        config=config,
        handler=case.handler,
        made=case.made,
        positions=case.positions,
        before=case.before,
    ) as at:
        await case.provoke(at)
        await eventually(lambda: any(overlaps(subject, one) for one in refused(at.server, "router")), 10)
        # /readyz
        if "/readyz" in said:
            # Of the newer form it names the domain and the account.
            await at.until_unready(re.sub(r".*\*\.(?=\w)", "", subject).removesuffix(".>").removesuffix("*"))
            assert any("permission" in one["reason"] or "allow this user" in one["reason"] for one in at.answer[1])
        elif case.waits:
            await at.until_unready(case.waits)
        else:
            await at.until_ready()
        # the log
        if not case.positions:
            logged = [one for code in codes for one in at.watch.of(code) if one.reason == "permission_denied"]
        else:
            (code,) = codes
            logged = [await at.watch.until(code)]
        assert not codes or logged, (codes, at.watch.codes)
        assert all("permission" in one.sentence().lower() for one in logged)
        assert "NOT_SAVED` names the subject" not in said or any(subject in one.sentence() for one in logged), logged
        # the metrics
        counted = [name for name in metrics if at.watch.metric(name, reason="permission_denied")]
        assert not metrics or counted, metrics
        # the ledgers
        assert_adds_up(at)
        before = at.live.routes[0].settled["routed"]
        await at.server.reload(case.server + users())
        # Perhaps not with the first message: a refused subscription is retried once a second, and a destination is
        # ready when it has taken a message.
        await eventually(lambda: at.probe(1.0), 10)
        await at.until_ready()
        await eventually(lambda: at.live.routes[0].settled["routed"] > before)
        await eventually(lambda: at.live.routes[0].in_hand == 0)
        assert_adds_up(at)
        if case.positions:

            async def has_checkpoint() -> bool:
                return await checkpoints_in(at.streams) == 1

            await eventually(has_checkpoint)
        if "stream" in case.route["from"]:
            stored = await at.stored()
            assert len(stored) == len({*stored})


def test_the_cases_are_exactly_the_rows_of_the_table() -> None:
    assert {*CASES} == {(row.kind, row.subject) for row in PERMISSIONS}
