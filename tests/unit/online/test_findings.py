"""Each finding of `check --online`, from facts made by hand: its severity, its key and its text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from router_trio.nats.jetstream.api import ConsumerInfo, StreamInfo, consumer_info, stream_info
from router_trio.nats.jetstream.flows import StreamFlow
from router_trio.nats.jetstream.sourced_stream import Partitioned
from router_trio.online import circles, destinations, partitions, servers, sources, streams
from router_trio.online.facts import Facts, ServerFacts, Unknown
from router_trio.online.report import report_of
from router_trio.protocol import metadata
from router_trio.settings import Settings
from router_trio.subjects.partitions import Partitioning
from tests.support.command import ROOT

LEADER = {"name": "C", "leader": "a"}


def stream(name: str, *subjects: str, state: Mapping[str, Any] | None = None, **rest: Any) -> StreamInfo:
    """Return a stream as a server describes it. `cluster` and `ts` are those of the answer, others of its config."""
    answer = {
        "config": {"name": name, "subjects": list(subjects), "duplicate_window": 120_000_000_000, "max_msgs": -1},
        "state": {"messages": 0, "bytes": 0, **(state or {})},
        "created": "2026-01-01T00:00:00Z",
        "cluster": rest.pop("cluster", {"leader": "single"}),
        "ts": rest.pop("ts", None),
    }
    answer["config"] |= rest
    return stream_info(json.dumps(answer).encode())


def consumer(stream: str = "ORDERS", durable: str = "router", *, paused: bool = False, **config: Any) -> ConsumerInfo:
    """Return a consumer as a server describes it, suitable for the route of `configured` by default."""
    given = {"durable_name": durable, "ack_policy": "explicit", "filter_subject": "orders.*"} | config
    answer = {
        "stream_name": stream,
        "name": durable,
        "created": "2026-01-01T00:00:00Z",
        "paused": paused,
        "num_waiting": given.pop("num_waiting", 0),
        "ack_floor": given.pop("ack_floor", {}),
        "config": given,
    }
    return consumer_info(json.dumps(answer).encode())


def configured(
    *, source: Mapping[str, Any] | None = None, to: Mapping[str, Any] | None = None, **rest: Any
) -> Settings:
    """Return a configuration that copies ORDERS to COPIES."""
    route = {
        "name": "copy",
        "from": {"stream": "ORDERS", "durable": "router", "filter": "orders.*"} | dict(source or {}),
        "to": [{"subject": "copies.{{wildcard(1)}}"} | dict(to or {})],
    }
    route |= rest.pop("route", {})
    return Settings(connections={"main": {"servers": ["nats://a"]}}, routes=[route], **rest)


ORDERS, COPIES = stream("ORDERS", "orders.*"), stream("COPIES", "copies.*")


def facts(
    *found: StreamInfo,
    settings: Settings | None = None,
    durable: ConsumerInfo | Unknown | None = None,
    takers: tuple[str, ...] | Unknown | None = None,
    outage: float | None = None,
    **server: Any,
) -> Facts:
    """Return the facts of a server with these streams instead of those of the same name in a good one."""
    names = {one.name: one for one in (ORDERS, COPIES, *found)}
    known = {
        "version": "2.14.5",
        "major_minor": (2, 14),
        "streams": names,
        "consumers": {("ORDERS", "router"): durable},
        "takers": {
            "routes[0].to[0].subject": ("COPIES",) if takers is None else takers,
            "routes[0].dead_letter.subject": (),
            "streams[0]": takers or (),
        },
    }
    return Facts(settings or configured(), {"main": ServerFacts(**known | server)}, outage)


def found(given: Facts) -> list[tuple[str, str, str, str]]:
    """Return the findings as plain tuples, without any that is missing."""
    report = report_of(given)
    assert report.missing == ()
    return [(one.name, one.severity, one.path, one.text) for one in report.findings]


def test_a_good_server_gives_no_finding() -> None:
    assert found(facts()) == []
    assert found(facts(durable=consumer())) == []
    with_attempts = configured(route={"retry": {"attempts": 3}})
    assert found(facts(durable=consumer(max_deliver=5), settings=with_attempts)) == []


def test_processes_of_the_route_itself_may_pull_from_a_durable_that_it_has_created() -> None:
    created = consumer(num_waiting=2, metadata={"router-trio.route": "copy"})
    assert found(facts(durable=created)) == []
    by_another = consumer(num_waiting=2, metadata={"router-trio.route": "another"})
    assert [name for name, *_ in found(facts(durable=by_another))] == ["durable_shared"]


def test_every_finding_has_a_fixture() -> None:
    lists = (servers.FINDINGS, servers.DECLARED, sources.FINDINGS, destinations.FINDINGS, streams.FINDINGS)
    names = {find.__name__ for one in lists for find in one}
    names |= {find.__name__ for find in (*partitions.FINDINGS, *circles.FINDINGS)}
    assert names == set(CASES)


def test_the_page_lists_every_finding_with_its_severities() -> None:
    page = (ROOT / "docs" / "how-to" / "check-online.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|", page, re.MULTILINE))
    severities = {name: ", ".join(dict.fromkeys(case[1] for case in cases)) for name, cases in CASES.items()}
    assert rows == severities


CASES: dict[str, list[tuple[Facts, str, str, str]]] = {}
"""For each finding some facts, and the severity, the key and the text that they give."""

TO, FROM = "routes[0].to[0].subject", "routes[0].from"

CASES["stream_missing"] = [
    (
        facts(takers=()),
        "error",
        TO,
        "no stream takes copies.*, so its messages wait until one does; add the subject to a stream, list the stream "
        "in [[streams]], or set `jetstream = false` if it is for subscribers",
    ),
    (
        facts(settings=configured(route={"retry": {"not": ["no_responders"]}}), takers=()),
        "error",
        TO,
        "no stream takes copies.*, so every copy fails with no_responders; add the subject to a stream, list the "
        "stream in [[streams]], or set `jetstream = false` if it is for subscribers",
    ),
    (
        facts(settings=configured(route={"dead_letter": {"subject": "dead"}})),
        "error",
        "routes[0].dead_letter.subject",
        "no stream takes dead, so no dead letter can be stored; add the subject to a stream, list the stream in "
        "[[streams]], or set `jetstream = false` if it is for subscribers",
    ),
    (
        facts(settings=configured(to={"stream": "GONE"}), streams={"ORDERS": ORDERS, "GONE": None}),
        "error",
        "routes[0].to[0].stream",
        "there is no stream 'GONE', so no copy can be stored; create it, or correct the name",
    ),
]
CASES["subjects_not_taken"] = [
    (
        facts(stream("COPIES", "copies.a", "copies.b")),
        "warning",
        TO,
        "streams take only a part of copies.*: copies.a, copies.b; every other copy is refused with no_responders; add "
        "the subjects to a stream, or narrow the source",
    )
]
CASES["circle_over_servers"] = [
    (
        facts(
            flows={
                "ORDERS": StreamFlow("ORDERS", ("orders.*",), None, None, (), 1),
                "COPIES": StreamFlow("COPIES", ("copies.*",), None, ("copies.*", "orders.{{wildcard(1)}}"), (), 0),
            }
        ),
        "warning",
        "routes[0]",
        "messages of route 'copy' may return to it: route 'copy' sends 'copies.*', stream 'COPIES' republishes as "
        "'orders.*', which the route reads; send to other subjects, narrow a source, or set hop_limit on the route if "
        "it is intended",
    )
]
CASES["fed_by_its_own_route"] = [
    (
        facts(
            stream("ORDERS", "orders.*", "copies.>"),
            settings=configured(source={"filter": None}, to={"subject": "copies.>"}),
            takers=("ORDERS",),
        ),
        "error",
        TO,
        "'copies.>' can match 'copies.>' of stream 'ORDERS', which the route reads, so it would feed "
        "itself; send to other subjects or narrow `filter`, or set hop_limit if it is intended",
    )
]
CASES["ttl_refused"] = [
    (
        facts(settings=configured(to={"ttl": "1h"})),
        "error",
        "routes[0].to[0].ttl",
        "stream 'COPIES' refuses messages with a time to live (Nats-TTL); set allow_msg_ttl on it, which needs "
        "nats-server 2.11, or remove the key",
    )
]
BUCKETS = configured(source={"stream": None, "filter": None, "bucket": "here"}, to={"subject": "", "bucket": "there"})
A_BUCKET: dict[str, Any] = {
    "discard": "new",
    "max_msgs_per_subject": 5,
    "allow_rollup_hdrs": True,
    "allow_msg_ttl": True,
}
HERE, THERE_AT = stream("KV_here", "$KV.here.>", **A_BUCKET), "routes[0].to[0].bucket"


def of_buckets(**there: Any) -> Facts:
    """Return the facts of a route between two buckets."""
    read = HERE if "max_age" not in there else stream("KV_here", "$KV.here.>", **A_BUCKET, max_age=3_600_000_000_000)
    copy = stream("KV_there", *there.pop("subjects", ["$KV.there.>"]), **{**A_BUCKET, **there})
    return facts(read, copy, settings=BUCKETS, consumers={("KV_here", "router"): None})


CASES["bucket_differs"] = [
    (
        of_buckets(allow_rollup_hdrs=False),
        "error",
        THERE_AT,
        "stream 'KV_there' allows no roll-ups (allow_rollup_hdrs), so every purge fails; create it as a bucket: "
        "nats kv add there",
    ),
    (
        of_buckets(allow_msg_ttl=False),
        "error",
        THERE_AT,
        "values of bucket 'here' may expire one by one, and bucket 'there' refuses such values; set allow_msg_ttl on "
        "its stream, which needs nats-server 2.11",
    ),
    (
        of_buckets(max_age=0),
        "warning",
        THERE_AT,
        "bucket 'here' deletes values after 1h, and bucket 'there' keeps them: a value may be in one and not in the "
        "other; set the same TTL on both",
    ),
    (
        of_buckets(max_msgs_per_subject=1),
        "warning",
        THERE_AT,
        "bucket 'there' keeps 1 values of a key, and 'here' 5: there an earlier value appears again when the last one "
        "expires, and not in the copy; set the same history on both",
    ),
]
LATER = configured(to={"delay": "5m", "schedule_prefix": "later"})
RETRIES = configured(route={"retry": {"schedule": {"stream": "RETRY", "prefix": "retry"}}})
CASES["schedules_lost"] = [
    (
        facts(stream("COPIES", "copies.*", "later.*"), settings=LATER),
        "error",
        "routes[0].to[0].delay",
        "stream 'COPIES' does not publish messages later; set allow_msg_schedules on it, which needs nats-server 2.12: "
        "nats stream edit COPIES --allow-schedules; until then the copies fail with schedules_refused",
    ),
    (
        facts(stream("COPIES", "copies.*", "later.*", allow_msg_schedules=True, max_bytes=9), settings=LATER),
        "error",
        "routes[0].to[0].delay",
        "stream 'COPIES' has limits (max_bytes) by which schedules are deleted and never published; remove them; "
        "until then the copies fail with schedules_refused",
    ),
    (
        facts(stream("COPIES", "later.*", allow_msg_schedules=True), settings=LATER),
        "error",
        "routes[0].to[0].delay",
        "stream 'COPIES' stores the schedules, and does not take 'copies.*' itself, so it refuses them; add the "
        "subject to it",
    ),
    (
        facts(stream("COPIES", "copies.*", "later.*", allow_msg_schedules=True, retention="workqueue"), settings=LATER),
        "note",
        "routes[0].to[0].delay",
        "stream 'COPIES' has the retention workqueue: a consumer that acks a schedule below 'later' deletes it, and "
        "its copy is never published; filter its consumers",
    ),
    (
        facts(stream("RETRY", "retry.>", allow_msg_schedules=True, max_age=10**9), settings=RETRIES),
        "error",
        "routes[0].retry.schedule.stream",
        "stream 'RETRY' has limits (max_age) by which schedules are deleted and never published; remove them; until "
        "then failed messages wait in the consumer",
    ),
]
CASES["source_missing"] = [
    (
        facts(streams={"ORDERS": None, "COPIES": COPIES}),
        "error",
        f"{FROM}.stream",
        "there is no stream 'ORDERS', so the route receives nothing; create it, correct the name, or list it in "
        "[[streams]]",
    )
]
CASES["filter_matches_nothing"] = [
    (
        facts(stream("ORDERS", "sales.*")),
        "error",
        f"{FROM}.filter",
        "'orders.*' matches none of the subjects of stream 'ORDERS', which are sales.*: nothing is received; correct "
        "the filter or the subjects",
    )
]
CASES["durable_differs"] = [
    (
        facts(durable=consumer(ack_policy="none")),
        "error",
        f"{FROM}.durable",
        "the durable 'router' of stream 'ORDERS' exists with another configuration: its ack policy is none, explicit "
        "is needed. Use another `durable`, or delete that consumer",
    ),
    (
        facts(durable=consumer(deliver_subject="inbox", ack_floor={"consumer_seq": 40, "stream_seq": 42})),
        "error",
        f"{FROM}.durable",
        "the durable 'router' of stream 'ORDERS' exists with another configuration: it is a push consumer, a pull "
        "consumer is needed. Use another `durable`, or delete that consumer. With another `durable` and deliver = 43 "
        "the route continues where this consumer is now: stop the program that uses it first",
    ),
    (
        facts(durable=consumer(deliver_subject="inbox", filter_subject="orders.new", ack_floor={"stream_seq": 42})),
        "error",
        f"{FROM}.durable",
        "the durable 'router' of stream 'ORDERS' exists with another configuration: it is a push consumer, a pull "
        "consumer is needed; its filter is orders.new, the route's is orders.*. Use another `durable`, or delete that "
        "consumer",
    ),
]
CASES["start_refused"] = [
    (
        facts(stream("ORDERS", "orders.*", retention="workqueue"), settings=configured(source={"deliver": "new"})),
        "error",
        f"{FROM}.deliver",
        "stream 'ORDERS' is a work queue, whose consumers must start at the first message: the durable can't be "
        "created; use deliver = 'all'",
    ),
    (
        facts(stream("ORDERS", "orders.*", state={"last_seq": 7}), settings=configured(source={"deliver": 9})),
        "error",
        f"{FROM}.deliver",
        "the durable 'router' would start at sequence 9 (deliver), and the last one of stream 'ORDERS' is 7: messages "
        "between them would be skipped; correct `deliver`",
    ),
]
CASES["lost_without_durable"] = [
    (
        facts(stream("ORDERS", "orders.*", retention="interest")),
        "warning",
        f"{FROM}.durable",
        "stream 'ORDERS' has the retention interest, and the durable 'router' does not exist: messages are deleted "
        "until the router creates it; start the router before the publishers",
    )
]
CASES["durable_paused"] = [
    (
        facts(durable=consumer(paused=True, pause_until="2026-12-01T10:00:00Z")),
        "warning",
        f"{FROM}.durable",
        "the durable 'router' of stream 'ORDERS' is paused until 2026-12-01T10:00:00Z, so the route receives nothing; "
        "resume it",
    )
]
CASES["delivery_limit_removed"] = [
    (
        facts(durable=consumer(max_deliver=5)),
        "note",
        f"{FROM}.durable",
        "the durable 'router' of stream 'ORDERS' has max_deliver = 5, which the router removes, since it counts "
        "attempts itself: a message that always fails is then retried without end; set attempts = 5 in "
        "[routes.retry], and [routes.dead_letter] to keep what is given up",
    )
]
CASES["durable_shared"] = [
    (
        facts(durable=consumer(num_waiting=2)),
        "note",
        f"{FROM}.durable",
        "clients are pulling from the durable 'router' of stream 'ORDERS' now, which this route has not created: if "
        "they are not processes of this configuration, each gets only a part of the messages; use another durable",
    )
]
CASES["lost_messages"] = [
    (
        facts(stream("COPIES", "copies.*", state={"lost": {"msgs": [3, 4, 9], "bytes": 300}})),
        "error",
        TO,
        "the server reports that stream 'COPIES' has lost 3 messages; run `router-trio audit` for the routes that use "
        "it, and restore a backup or publish them again",
    )
]
CASES["copies_not_kept"] = [
    (
        facts(stream("COPIES", "copies.*", retention="interest")),
        "error",
        TO,
        "stream 'COPIES' has the retention interest and no consumers: it acks each copy and deletes it at once; create "
        "its consumers first, or use the retention limits",
    )
]
CASES["refuses_messages"] = [
    (
        facts(stream("COPIES", "copies.*", sealed=True)),
        "error",
        TO,
        "stream 'COPIES' is sealed and accepts no messages; send to another stream",
    ),
    (
        facts(stream("COPIES", "copies.*", no_ack=True)),
        "error",
        TO,
        "stream 'COPIES' sends no PubAcks (no_ack), so nothing counts as stored; turn no_ack off",
    ),
    (
        facts(stream("COPIES", "copies.*", discard="new", max_msgs=5, state={"messages": 5})),
        "error",
        TO,
        "stream 'COPIES' is full and refuses new messages: its limit is 5 messages (max_messages, or max_msgs for "
        "nats); raise it, or delete messages",
    ),
]
SILENT = {"name": "C", "leader": "", "replicas": [{"name": "b", "current": False, "active": 0}]}
CASES["not_available"] = [
    (
        facts(stream("ORDERS", "orders.*", num_replicas=3, cluster=SILENT)),
        "error",
        f"{FROM}.stream",
        "stream 'ORDERS' is not available: it has no leader; restart its servers",
    )
]
CASES["acked_before_written"] = [
    (
        facts(stream("COPIES", "copies.*", persist_mode="async")),
        "warning",
        TO,
        "stream 'COPIES' acks messages before they are written (persist_mode async), so that a crash of its server "
        "loses acked copies; use the persist mode default",
    )
]
CASES["window_too_short"] = [
    (
        facts(stream("COPIES", "copies.*", duplicate_window=50_000_000_000)),
        "warning",
        TO,
        "stream 'COPIES' remembers the ids of copies for 50s (duplicate_window), and a copy may be sent again after "
        "1m, the longest delay in [routes.retry] of route copy: it is then stored twice; set duplicate_window to the "
        "longest planned outage",
    ),
    (
        facts(outage=3600.0),
        "warning",
        TO,
        "stream 'COPIES' remembers the ids of copies for 2m (duplicate_window), and a copy may be sent again after 1h, "
        "the outage of --outage: it is then stored twice; set duplicate_window to the longest planned outage",
    ),
]
CASES["messages_expire"] = [
    (
        facts(stream("ORDERS", "orders.*", max_age=10_000_000_000)),
        "warning",
        f"{FROM}.stream",
        "stream 'ORDERS' deletes messages after 10s (max_age), and an outage may take 42s: those not yet routed are "
        "lost; raise max_age",
    ),
    (
        facts(stream("ORDERS", "orders.*", max_age=3_600_000_000_000)),
        "note",
        f"{FROM}.stream",
        "stream 'ORDERS' deletes messages after 1h (max_age), routed or not: an outage must not be longer",
    ),
]
CASES["messages_discarded"] = [
    (
        facts(stream("ORDERS", "orders.*", max_msgs=1000, max_msgs_per_subject=1)),
        "note",
        f"{FROM}.stream",
        "stream 'ORDERS' deletes its oldest messages, routed or not, at 1000 messages (max_msgs) or 1 messages of a "
        "subject (max_msgs_per_subject); if a backlog may be larger, raise the limit or use discard = 'new'",
    )
]
CASES["size_too_small"] = [
    (
        facts(stream("COPIES", "copies.*", max_msg_size=1000)),
        "warning",
        TO,
        "stream 'COPIES' refuses messages of more than 1000 bytes (max_msg_size), and those of the source's server may "
        "have up to 1048576: such a copy fails with too_large; raise max_msg_size",
    )
]
CASES["one_replica"] = [
    (
        facts(stream("COPIES", "copies.*", cluster=LEADER)),
        "warning",
        TO,
        "stream 'COPIES' has one replica in a cluster: without that server nothing can be stored or read, and its disk "
        "is the only copy; use replicas = 3",
    )
]
BEHIND = [{"name": "b", "current": False, "active": 1}, {"name": "c", "current": True, "active": 1}]
CASES["replicas_behind"] = [
    (
        facts(stream("COPIES", "copies.*", num_replicas=3, cluster=LEADER | {"replicas": BEHIND})),
        "warning",
        TO,
        "stream 'COPIES' has replicas that are offline or behind: b; until they have everything, fewer servers may "
        "fail than it has replicas for",
    )
]
NO_JETSTREAM = Unknown("no JetStream", reported=True)
CASES["no_jetstream"] = [
    (
        facts(
            streams={"ORDERS": NO_JETSTREAM},
            takers=NO_JETSTREAM,
            durable=NO_JETSTREAM,
            no_jetstream="JetStream is not enabled on this server or for this account",
        ),
        "error",
        "connections.main",
        "JetStream is not enabled on this server or for this account; routes read or send to streams here, so they "
        "fail; enable JetStream",
    )
]
CASES["server_too_old"] = [
    (
        facts(version="2.9.25", major_minor=(2, 9)),
        "error",
        "connections.main",
        "the server has version 2.9.25, and router-trio needs 2.10; update the server",
    ),
    (
        facts(version="2.10.1", major_minor=(2, 10), settings=configured(source={"standby": True})),
        "error",
        f"{FROM}.standby",
        "the server has version 2.10.1, and standby needs 2.11; update the server",
    ),
]
CASES["permission_missing"] = [
    (
        facts(permissions={("publish", "copies.*"): "this user may not publish to copies.x: Permissions Violation"}),
        "error",
        "connections.main",
        "this user may not publish to copies.x: Permissions Violation; it is for messages of copy; grant publish "
        "'copies.*', as `router-trio permissions` prints it",
    ),
    (
        facts(permissions={("publish", "$JS.API.STREAM.NAMES"): "refused"}),
        "note",
        "connections.main",
        "refused; it is for which stream takes the messages of copy; grant publish '$JS.API.STREAM.NAMES', as "
        "`router-trio permissions` prints it",
    ),
]
CASES["clocks_differ"] = [
    (
        facts(skew=-61.0),
        "warning",
        "connections.main",
        "the clock of the server is 61 s behind this machine's: times and ages that the router reports, and ranges of "
        "times in commands, are wrong by that; synchronize the clocks",
    )
]
DECLARED = configured(streams=[{"name": "COPIES", "subjects": ["copies.*"], "allow_batched": True}])
BATCHED = stream("COPIES", "copies.*", allow_batched=True, metadata={"_nats.level": "3"})
ABSENT = {"ORDERS": ORDERS, "COPIES": None}
CASES["level_too_low"] = [
    (
        facts(BATCHED, settings=DECLARED),
        "error",
        "streams[0].allow_batched",
        "needs level 4 of the JetStream API, and the stream's server has 3; update it",
    )
]
CASES["declared_differs"] = [
    (
        facts(settings=DECLARED),
        "warning",
        "streams[0].allow_batched",
        "stream 'COPIES': allow_batched is false there and true here; the router does not change the stream: edit it, "
        "or change the key",
    )
]
CASES["declared_overlaps"] = [
    (
        facts(settings=DECLARED, streams=ABSENT | {"OTHER": stream("OTHER", "copies.>")}, takers=("OTHER",)),
        "error",
        "streams[0].subjects",
        "stream 'COPIES' can't be created, because OTHER takes some of its subjects; choose other subjects, or that "
        "name",
    )
]
CASES["to_be_created"] = [
    (
        facts(settings=DECLARED, streams=ABSENT, takers=()),
        "note",
        "streams[0]",
        "stream 'COPIES' does not exist; the router creates it at its start",
    )
]

# --- partitions ---

PARTITIONED = configured(source={"partitions": 4, "partition_by": [1]})
TRANSFORMS = [{"src": "orders.*", "dest": "{{partition(4,1)}}.orders.{{wildcard(1)}}"}]
THERE = Partitioned(Partitioning(4, (1,), ("orders.*",)), "ORDERS")


def of_partitions(*found: StreamInfo, settings: Settings = PARTITIONED, has: Any = THERE, **server: Any) -> Facts:
    """Return the facts of a route that reads a copy of ORDERS, which has these partitions."""
    copy = stream("ORDERS-router", sources=[{"name": "ORDERS", "subject_transforms": TRANSFORMS}])
    partitioned = {} if has is None else {"ORDERS-router": has}
    return facts(copy, *found, settings=settings, **{"partitioned": partitioned} | server)


COPY_COSTS = (
    ": each message that the route reads is stored twice, and costs the server some 20 us of a processor more; a "
    "transform of the stream itself costs nothing (`partitions` in [[streams]])"
)

CASES["partitions_differ"] = [
    (
        of_partitions(has=replace(THERE, partitioning=Partitioning(8, (1,), ("orders.*",)))),
        "error",
        f"{FROM}.partitions",
        "the route is refused: the stream 'ORDERS-router' has other partitions: it has 8 partitions, the route 4 "
        "partitions; correct the route, or change the stream with `router-trio partitions CONFIG ROUTE --change "
        "--apply`",
    ),
    (
        of_partitions(has=None),
        "error",
        f"{FROM}.partitions",
        "the route is refused: the stream 'ORDERS-router' exists, and does not put a partition in front of its "
        "subjects; use another `durable`",
    ),
    (
        facts(settings=PARTITIONED, partitioned={"ORDERS": Partitioned(Partitioning(2))}),
        "error",
        f"{FROM}.partitions",
        "the route is refused: the stream 'ORDERS' has other partitions: it has 2 partitions, the route 4 partitions; "
        "correct the route, or change the stream with `router-trio partitions CONFIG ROUTE --change --apply`",
    ),
    (
        of_partitions(has=replace(THERE, of_others=True)),
        "error",
        f"{FROM}.durable",
        "the stream 'ORDERS-router' is a work queue that another program has made, such as an elastic consumer group "
        "of Orbit: it deletes what the consumers of that program ack; use another `durable`",
    ),
]
CASES["copy_refused"] = [
    (
        of_partitions(stream("ORDERS", "orders.*", retention="workqueue"), version="2.12.0", major_minor=(2, 12)),
        "error",
        f"{FROM}.partitions",
        "the stream 'ORDERS' has workqueue retention, which nats-server copies without a loss from 2.14 on; upgrade "
        "it, or give that stream a subject transform that adds the partition",
    )
]
CASES["read_without_partitions"] = [
    (
        facts(settings=PARTITIONED, durable=consumer(ack_floor={"consumer_seq": 40, "stream_seq": 42})),
        "error",
        f"{FROM}.durable",
        "the durable 'router' of stream 'ORDERS' exists, so the route has read it without partitions, up to message "
        "42. To go on there, stop what uses the durable once nothing is unacked, set deliver = 43 and delete it. To "
        "read all from deliver = 'all' on, use another `durable`",
    )
]
CASES["copied"] = [
    (of_partitions(), "note", f"{FROM}.partitions", f"stream 'ORDERS-router' copies 'ORDERS'{COPY_COSTS}"),
    (
        facts(settings=PARTITIONED),
        "note",
        f"{FROM}.partitions",
        f"stream 'ORDERS-router' does not exist; the router creates it at its start, as a copy of 'ORDERS'{COPY_COSTS}",
    ),
]
CASES["copied_by_filters"] = [
    (
        facts(
            stream("ORDERS", "orders.*", "returns.*"),
            settings=configured(
                source={"filter": ["orders.*", "returns.*"], "partitions": 4, "partition_by": [1]},
                to={"subject": "copies.a"},
            ),
        ),
        "warning",
        f"{FROM}.filter",
        "stream 'ORDERS-router' copies by 2 filters, which costs the server some 90 us of a processor for each "
        "message, four times as much as by one; use one filter with wildcards, or a transform of the stream itself "
        "(`partitions` in [[streams]])",
    )
]
CASES["copy_drops"] = [
    (
        of_partitions(has=replace(THERE, window=120.0)),
        "error",
        f"{FROM}.partitions",
        "the stream 'ORDERS-router' has a duplicate window of 120 s, so that it drops messages with the id of an "
        "earlier one that 'ORDERS' has stored as well; run `nats stream edit ORDERS-router --dupe-window 0s`",
    )
]
CASES["copy_stalled"] = [
    (
        of_partitions(
            stream("ORDERS-router", ts="2026-01-01T00:01:00Z"),
            has=replace(THERE, lag=1234, heard_at=1_767_225_600 * 10**9),
        ),
        "error",
        f"{FROM}.partitions",
        "stream 'ORDERS-router' lacks 1,234 messages of 'ORDERS', which it has not heard of for 60 s: nothing is "
        "copied; check the leaders of both with `nats stream info`",
    )
]
CASES["members_stay"] = [
    (
        of_partitions(stream("KV_router-trio-members", "$KV.router-trio-members.>")),
        "error",
        f"{FROM}.partitions",
        "the bucket 'router-trio-members' does not let its keys expire (allow_msg_ttl), so that processes that have "
        "gone would keep their share; run `nats stream edit KV_router-trio-members --allow-msg-ttl`",
    )
]
CASES["server_too_old"] += [
    (
        facts(settings=configured(source={"partitions": 4}), version="2.11.9", major_minor=(2, 11)),
        "error",
        f"{FROM}.partitions",
        "the server has version 2.11.9, and partitions without partition_by needs 2.12; update the server",
    )
]
CASES["durable_differs"] += [
    (
        of_partitions(
            consumers={
                ("ORDERS-router", "router-2"): consumer(
                    "ORDERS-router",
                    "router-2",
                    filter_subject="3.orders.*",
                    priority_groups=["router"],
                    priority_policy="pinned_client",
                )
            }
        ),
        "error",
        f"{FROM}.durable",
        "the durable 'router-2' of stream 'ORDERS-router' exists with another configuration: its filter is "
        "3.orders.*, the route's is 2.orders.*. Use another `durable`, or delete that consumer",
    )
]

EXPECTED = [(name, *case) for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("name", "given", "severity", "path", "text"), EXPECTED)
def test_a_finding(name: str, given: Facts, severity: str, path: str, text: str) -> None:
    findings = found(given)
    assert (name, severity, path, text) in findings
    # What is wrong is found once, but for a stream that can't be created, which is also noted, and for a copy.
    assert {one[0] for one in findings} - {name} <= {"to_be_created", "copied"}


def test_a_server_that_can_not_be_reached_leaves_every_finding_out() -> None:
    report = report_of(Facts(configured(), {"main": Unknown("no connection within 2 s")}))
    assert report.findings == ()
    [missing] = report.missing
    assert (missing.path, missing.why, set(missing.names)) == (
        "connections.main",
        "no connection within 2 s",
        set(CASES),
    )


def test_a_fact_that_could_not_be_asked_leaves_out_what_needs_it_and_nothing_else() -> None:
    denied = Unknown("this user may not publish to $JS.API.CONSUMER.INFO.ORDERS.router")
    given = facts(stream("ORDERS", "sales.*"), durable=denied)
    report = report_of(given)
    assert [one.name for one in report.findings] == ["filter_matches_nothing"]
    [missing] = report.missing
    assert (missing.path, missing.why) == ("routes[0].from", denied.why)
    assert missing.names == ("durable_differs", "delivery_limit_removed", "durable_paused", "durable_shared")


def test_a_stream_that_could_not_be_asked_leaves_out_the_findings_about_it() -> None:
    report = report_of(facts(takers=Unknown("timeout")))
    [missing] = report.missing
    assert {"stream_missing", "window_too_short", "lost_messages"} <= set(missing.names)
    assert not report.is_bad


def test_the_report_names_what_can_not_be_seen() -> None:
    assert [one.split(" ")[0] for one in report_of(facts()).unseen] == ["sync_interval"]
    [_, untested] = report_of(facts(untested="nats-server before 2.11 has no test without a message")).unseen
    assert untested == (
        "permissions to publish of connection main: nats-server before 2.11 has no test without a message"
    )


@pytest.mark.parametrize(
    "text",
    ["", "[", "[" * 2000, "{}", "[1]", '[["a"]]', "[[1, 2]]", '[["a", "b\\u0007"]]', '[["", "' + "x" * 3000 + '"]]'],
)
def test_metadata_by_another_client_is_not_followed(text: str) -> None:
    assert consumer(metadata={"router-trio.route": "r", "router-trio.sends": text}).config.sends == ()


def test_where_a_route_sends_is_bounded_in_the_metadata() -> None:
    ends = [("", f"subject.{number}") for number in range(1000)]
    written = metadata.sends(ends)[metadata.SENDS]
    assert len(written) <= metadata.MOST_SENDS
    kept = consumer(metadata={"router-trio.sends": written}).config.sends
    assert [*kept] == ends[: len(kept)]
    assert len(kept) > 50
