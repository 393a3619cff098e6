"""Answers of the JetStream API: a valid one is parsed into values, any other raises one error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from router_trio.errors import SourceError
from router_trio.errors.quotes import LONGEST_QUOTE
from router_trio.nats.jetstream import api
from router_trio.nats.jetstream.api import (
    PAUSED_BY,
    PAUSED_UNTIL,
    Api,
    ApiError,
    ConsumerInfo,
    Denials,
    Group,
    Reached,
    StreamInfo,
)
from router_trio.protocol.bounded_json import AnswerError
from router_trio.protocol.stream_config import StreamSubjects
from tests.support.delayed_requests import DelayedRequests
from tests.support.odd_answers import BODIES, VALUES, json_values
from tests.support.raw_server import consumer_answer, stream_answer

CLUSTER = {"cluster": {"leader": "a", "replicas": [{"name": "b", "current": True, "active": 7}]}}
READERS: dict[str, tuple[Callable[[bytes], StreamInfo | ConsumerInfo], dict[str, Any]]] = {
    "stream": (api.stream_info, stream_answer("S") | CLUSTER),
    "consumer": (api.consumer_info, consumer_answer("S", "d") | CLUSTER),
}
STREAM = b"""{"type":"io.nats.jetstream.api.v1.stream_info_response","total":0,"offset":0,"limit":0,
"config":{"name":"S","subjects":["s.\\u003e"],"retention":"workqueue","max_consumers":-1,"max_msgs":7,"max_bytes":-1,"max_age":1500000000,
"max_msgs_per_subject":-1,"max_msg_size":1000,"discard":"new","storage":"memory","num_replicas":3,
"duplicate_window":120000000000,"compression":"none","allow_direct":true,"mirror_direct":false,"sealed":false,
"deny_delete":true,"deny_purge":false,"allow_rollup_hdrs":true,"consumer_limits":{},"allow_msg_ttl":true,
"allow_batched":true,"metadata":{"_nats.level":"5"}},"created":"2026-11-25T22:04:12.627927376Z","state":{"messages":1,
"bytes":19,"first_seq":5,"first_ts":"2026-11-25T22:04:12.628520046Z","last_seq":6,
"last_ts":"2026-11-25T22:04:12.7Z","num_subjects":1,"consumer_count":1},"cluster":{"name":"test","leader":"node1",
"replicas":[{"name":"node2","current":true,"active":423000000,"peer":"Ym8S2jj6"},
{"name":"node3","current":false,"offline":true,"active":61000000000,"lag":3,"peer":"RTmtZYva"}]},
"ts":"2026-11-25T22:04:12.629344294Z"}"""
CONSUMER = b"""{"type":"io.nats.jetstream.api.v1.consumer_info_response","stream_name":"S","name":"d",
"created":"2026-11-25T22:04:12+02:00","config":{"durable_name":"d","name":"d","deliver_policy":"all",
"ack_policy":"explicit","ack_wait":1500000000,"max_deliver":3,"backoff":[1000000000,2000000000],
"filter_subjects":["s.a","s.b"],"replay_policy":"instant","max_waiting":512,"max_ack_pending":1000,"max_batch":7,
"max_bytes":1000,"num_replicas":0,"headers_only":true,"metadata":{"a":"b"},"pause_until":"2030-01-01T00:00:00Z",
"priority_groups":["a"],"priority_policy":"overflow"},"delivered":{"consumer_seq":9,"stream_seq":18446744073709551615},
"ack_floor":{"consumer_seq":2,"stream_seq":4},"num_ack_pending":5,"num_redelivered":1,"num_waiting":2,"num_pending":3,
"paused":true,"pause_remaining":97811747370266632,"ts":"2026-11-25T22:04:12.629732427Z",
"priority_groups":[{"group":"a","pinned_ts":"0001-01-01T00:00:00Z"}]}"""


@pytest.mark.parametrize(
    ("leader", "silent_for", "trouble"),
    [
        ("", (), None),
        ("a", (), None),
        ("a", (0.1, 0.2), None),
        ("a", (0.1, 5.0), None),
        ("a", (5.0, 5.0), "leader a has heard nothing of 2 of its 2 replicas"),
        ("a", (5.0, 3.9), None),
        ("a", (0.1, 0.1, 9.0, 9.0), None),
        ("a", (0.1, 9.0, 9.0, 9.0), "nothing of 3 of its 4"),
        ("a", (9.0,), "nothing of 1 of its 1"),
        ("", (0.0, 0.0), "it has no leader"),
    ],
)
def test_a_group_without_a_majority_is_in_trouble(
    leader: str, silent_for: tuple[float, ...], trouble: str | None
) -> None:
    said = Group(leader, silent_for).trouble
    assert said is None if trouble is None else trouble in str(said)


def test_a_stream_answer_is_parsed() -> None:
    """Parse an answer as nats-server 2.15 sends it."""
    info = api.stream_info(STREAM)
    assert (info.name, info.created, info.subjects) == ("S", "2026-11-25T22:04:12.627927376Z", ("s.>",))
    assert (info.retention, info.storage, info.discard, info.replicas) == ("workqueue", "memory", "new", 3)
    assert (info.max_messages, info.max_bytes, info.max_message_size, info.max_age) == (7, -1, 1000, 1.5)
    assert (info.duplicate_window, info.messages, info.bytes) == (120.0, 1, 19)
    assert (info.first_sequence, info.last_sequence) == (5, 6)
    assert (info.first_time, info.last_time) == ("2026-11-25T22:04:12.628520046Z", "2026-11-25T22:04:12.7Z")
    assert info.group == Group("node1", (0.423, 61.0), ("node3",), "test")
    assert (info.consumers, info.lost, info.level, info.now) == (1, 0, 5, "2026-11-25T22:04:12.629344294Z")
    assert info.allow_rollup
    assert info.allow_direct
    assert info.allow_message_ttl
    assert info.allow_batched
    assert info.deny_delete
    assert not any((info.allow_atomic, info.allow_counter, info.allow_schedules, info.sealed, info.mirror))


def test_lost_messages_are_counted() -> None:
    answer = json.loads(STREAM)
    answer["state"]["lost"] = {"msgs": [3, 4, 9], "bytes": 300}
    assert api.stream_info(json.dumps(answer).encode()).lost == 3


def test_a_consumer_answer_is_parsed() -> None:
    info = api.consumer_info(CONSUMER)
    assert (info.stream, info.name, info.created) == ("S", "d", "2026-11-25T22:04:12+02:00")
    assert (info.delivered, info.ack_floor) == (Reached(9, 2**64 - 1), Reached(2, 4))
    assert (info.num_pending, info.num_ack_pending, info.num_redelivered, info.num_waiting) == (3, 5, 1, 2)
    assert info.paused
    assert info.group == Group("", ())
    config = info.config
    assert (config.ack_policy, config.ack_wait, config.max_deliver, config.backoff) == ("explicit", 1.5, 3, 2)
    assert (config.filter_subjects, config.deliver_subject, config.headers_only) == (("s.a", "s.b"), "", True)
    assert (config.max_ack_pending, config.max_waiting, config.max_batch, config.max_bytes) == (1000, 512, 7, 1000)
    assert (config.pause_until, config.priority_policy, config.priority_groups) == (
        "2030-01-01T00:00:00Z",
        "overflow",
        ("a",),
    )


@pytest.mark.parametrize(
    ("until", "metadata", "by"),
    [
        ("2030-01-01T00:00:00Z", {PAUSED_BY: "ann@host", PAUSED_UNTIL: "2030-01-01T00:00:00.000Z"}, "ann@host"),
        ("2030-01-01T02:00:00+02:00", {PAUSED_BY: "ann\n@host", PAUSED_UNTIL: "2030-01-01T00:00:00Z"}, "ann\\n@host"),
        ("2031-01-01T00:00:00Z", {PAUSED_BY: "ann@host", PAUSED_UNTIL: "2030-01-01T00:00:00Z"}, ""),
        ("2030-01-01T00:00:00Z", {PAUSED_BY: "ann@host"}, ""),
        (None, {PAUSED_BY: "ann@host", PAUSED_UNTIL: "2030-01-01T00:00:00Z"}, ""),
        ("2030-01-01T00:00:00Z", {}, ""),
        ("2030-01-01T00:00:00Z", None, ""),
    ],
)
def test_the_author_of_a_pause_is_that_of_the_pause_in_force(
    until: str | None, metadata: dict[str, str] | None, by: str
) -> None:
    answer = json.loads(CONSUMER)
    answer["config"] |= {"metadata": metadata, "pause_until": until}
    assert api.consumer_info(json.dumps(answer).encode()).config.paused_by == by


def test_an_error_answer_is_raised_with_its_codes_and_a_bounded_description() -> None:
    body = {"error": {"code": 404, "err_code": 10059, "description": "stream\nnot \x1b[31mfound" + "x" * 500}}
    for read, _ in READERS.values():
        with pytest.raises(ApiError) as caught:
            read(json.dumps(body).encode())
        assert (caught.value.code, caught.value.error_code) == (404, 10059)
        assert caught.value.description.startswith("stream\\nnot \\x1b[31mfoundxxx")
        assert len(caught.value.description) == LONGEST_QUOTE


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_an_invalid_answer_raises_one_error(what: str, body: bytes) -> None:
    with pytest.raises(AnswerError) as caught:
        READERS[what][0](body)
    assert 0 < len(str(caught.value)) <= 2 * LONGEST_QUOTE


@pytest.mark.parametrize("what", READERS)
def test_every_field_may_have_any_value(what: str) -> None:
    """Any value is parsed into its type and range, or raises one error that names the field."""
    read, answer = READERS[what]
    refused: list[tuple[str, str]] = []
    for path in paths(answer):
        for value in VALUES:
            changed = deepcopy(answer)
            place = changed
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = value
            try:
                typed(read(json.dumps(changed).encode()))
            except AnswerError as error:
                refused.append((".".join(path), str(error)))
    assert len(refused) > 100
    for field, error_text in refused:
        assert field in error_text or "JSON" in error_text
        assert len(error_text) <= 2 * LONGEST_QUOTE


def test_a_duplicated_field_is_an_error() -> None:
    body = json.dumps(stream_answer("S")).replace('"created":', '"created": "2026-01-01T00:00:00Z", "created":')
    with pytest.raises(AnswerError, match="twice"):
        api.stream_info(body.encode())


@given(value=json_values)
def test_any_json_is_an_answer_or_one_error(value: Any) -> None:
    for read, _ in READERS.values():
        with suppress(AnswerError, ApiError):
            typed(read(json.dumps(value).encode()))


@given(body=st.binary(max_size=300))
def test_any_bytes_raise_one_error(body: bytes) -> None:
    for read, _ in READERS.values():
        with pytest.raises((AnswerError, ApiError)):
            read(body)


@given(what=st.sampled_from(sorted(READERS)), data=st.data())
def test_an_answer_with_one_changed_value_is_parsed_or_raises_one_error(what: str, data: st.DataObject) -> None:
    read, answer = READERS[what]
    path = data.draw(st.sampled_from(list(paths(answer))))
    changed = deepcopy(answer)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = data.draw(json_values)
    with suppress(AnswerError):
        typed(read(json.dumps(changed).encode()))


def paths(answer: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the path of names that leads to each field."""
    for name, value in answer.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *more) for more in paths(value))


def typed(info: StreamInfo | ConsumerInfo | api.ConsumerConfig | Group | Reached) -> None:
    """Assert that each value has the type that its annotation names, and is bounded."""
    for name in info.__slots__:
        value = getattr(info, name)
        if isinstance(value, str):
            assert len(value) <= 4096
        elif isinstance(value, tuple):
            assert all(isinstance(one, float) or (isinstance(one, str) and len(one) <= 4096) for one in value)
        elif isinstance(value, (api.ConsumerConfig, Group, Reached)):
            typed(value)
        elif isinstance(value, StreamSubjects):
            assert type(value.has_others) is bool
            assert all(len(one) <= 4096 for one in (*value.taken, *(value.transform or ())))
        else:
            assert type(value) in (int, float, bool), name
            assert -1 <= value < 2**64, name


# --- how long an answer may take ---


class FarServer(DelayedRequests):
    """The requests of a link whose server answers `seconds` after the round trip."""

    def __init__(self, round_trip: float, seconds: float, *, ping_under_way: bool) -> None:
        self._round_trip = round_trip
        self._seconds = seconds
        self._under_way = ping_under_way

    async def ping(self) -> None:
        if not self._under_way:
            await trio.sleep(self._round_trip)
        self._under_way = False

    async def respond(self, subject: str, body: bytes, fields: dict[str, str]) -> bytes:
        await trio.sleep(self._round_trip + self._seconds)
        return subject.encode()


def api_of(server: Any) -> Api:
    return Api(server, Denials())


@pytest.mark.parametrize("ping_under_way", [False, True])
@pytest.mark.parametrize("round_trip", [0.0, 1.0, 3.0, 30.0])
async def test_the_round_trip_of_a_link_does_not_count_against_the_answer_timeout(
    round_trip: float, ping_under_way: bool, autojump_clock: MockClock
) -> None:
    far = api_of(FarServer(round_trip, 1.9, ping_under_way=ping_under_way))
    assert await far.ask("STREAM.INFO.S", b"", bytes.decode, 2.0) == "$JS.API.STREAM.INFO.S"
    silent = api_of(FarServer(round_trip, 1000.0, ping_under_way=ping_under_way))
    began = trio.current_time()
    with pytest.raises(TimeoutError):
        await silent.ask("STREAM.INFO.S", b"", bytes.decode, 2.0)
    assert trio.current_time() - began <= 2 * round_trip + 2.1


async def test_a_request_that_is_refused_or_cancelled_ends_at_once(autojump_clock: MockClock) -> None:
    silent = api_of(FarServer(3.0, 1000.0, ping_under_way=False))

    async def refuse() -> None:
        await trio.sleep(1.0)
        assert silent.denials.denied(b"$JS.API.STREAM.INFO.S", "Permissions Violation")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(SourceError) as caught:
            await silent.ask("STREAM.INFO.S", b"", bytes.decode, 2.0)
    assert caught.value.reason == "permission_denied"
    began = trio.current_time()
    with trio.move_on_after(1.0) as scope:
        await silent.ask("STREAM.INFO.S", b"", bytes.decode, 2.0)
    assert scope.cancelled_caught
    assert trio.current_time() - began < 1.1
