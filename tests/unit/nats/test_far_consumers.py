"""Consumers on a link with a long round trip, which does not count against the timeout of the server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import SourceError, reasons
from router_trio.nats.jetstream.api import Api, Denials, nanoseconds
from router_trio.nats.jetstream.consumers import FoundConsumer, WirePullConsumer, ensure_consumer
from router_trio.nats.jetstream.streams import Lookups
from router_trio.protocol.consumer import ConsumerSpec, ConsumerState, Limits, Progress
from tests.support.delayed_requests import DelayedRequests
from tests.support.raw_server import CREATED, consumer_answer, stream_answer

SPEC = ConsumerSpec("S", "d", (), 30.0, -1, 1000)
NONE = cast(Any, None)


class FarServer(DelayedRequests):
    """The requests of a link. Its server answers at once, a round trip away.

    The pull requests of an earlier, dead link wait there until `drops_at`.
    """

    def __init__(self, round_trip: float, *, drops_at: float = 0.0, is_silent: bool = False) -> None:
        self._round_trip = round_trip
        self._drops_at = drops_at
        self._is_silent = is_silent
        self.created = CREATED
        self.stored: list[tuple[int, str]] = []
        """Sequence and time of the first and the last message."""
        self.found = ""
        """The time of the message that is looked up."""
        self.lookups = 0

    async def ping(self) -> None:
        await trio.sleep(self._round_trip)

    async def respond(self, subject: str, body: bytes, fields: dict[str, str]) -> bytes:
        await trio.sleep(self._round_trip / 2)
        answer = stream_answer("S") if ".STREAM." in subject else consumer_answer("S", "d")
        if ".STREAM.INFO." in subject and self.stored:
            (first, first_time), (last, last_time) = self.stored
            answer["state"] |= {"messages": last, "first_seq": first, "last_seq": last}
            answer["state"] |= {"first_ts": first_time, "last_ts": last_time}
        if ".MSG.GET." in subject:
            self.lookups += 1
            answer = {"message": {"subject": "in.a", "seq": json.loads(body)["seq"], "time": self.found}}
        if ".CONSUMER." in subject:
            answer["created"] = self.created
        if ".CONSUMER." in subject and trio.current_time() < self._drops_at:
            answer["num_waiting"] = 1
        await trio.sleep(float("inf") if self._is_silent else self._round_trip / 2)
        return json.dumps(answer).encode()


STATE = ConsumerState(None, unacked=7, max_ack_pending=1000, delivered=7, undelivered=0)


def consumer_of(server: Any) -> WirePullConsumer:
    api = Api(server, Denials())
    limits = Limits(-1, 1000, "limits")
    found = FoundConsumer(30.0, "", None, Progress(7, in_use=False), limits, range(1, 8), 7, (), False, STATE)
    return WirePullConsumer(SPEC, found, b"_INBOX.x", api, Lookups(api), lambda _: None, NONE, NONE, NONE)


@pytest.mark.parametrize("round_trip", [0.0, 1.0, 6.0, 30.0])
async def test_the_answer_that_naks_were_read_has_its_timeout_after_a_round_trip(
    round_trip: float, autojump_clock: MockClock
) -> None:
    assert await consumer_of(FarServer(round_trip)).again([1, 2, 3])
    began = trio.current_time()
    assert not await consumer_of(FarServer(round_trip, is_silent=True)).again([1, 2, 3])
    assert trio.current_time() - began <= 4 * round_trip + 10.1


async def test_denied_naks_are_not_waited_for(autojump_clock: MockClock) -> None:
    far = consumer_of(FarServer(1.0, is_silent=True))

    async def deny() -> None:
        while trio.current_time() < 5.0:
            await trio.sleep(0.1)
            for subject in [*far._api.denials._waiting]:
                far._api.denials.denied(subject, "Permissions Violation")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deny)
        assert not await far.again([1])
        assert trio.current_time() < 1.0


@pytest.mark.parametrize(("drops_at", "in_use"), [(0.0, False), (4.0, False), (1000.0, True)])
@pytest.mark.parametrize("round_trip", [0.01, 2.0])
async def test_pull_requests_of_a_dead_link_are_not_mistaken_for_another_process(
    round_trip: float, drops_at: float, in_use: bool, autojump_clock: MockClock
) -> None:
    api = Api(cast(Any, FarServer(round_trip, drops_at=drops_at if round_trip > 1 or in_use else 0.2)), Denials())
    found = await ensure_consumer(api, SPEC, NONE, NONE)
    assert found.progress.in_use is in_use


@pytest.mark.parametrize(("owes_acks", "same"), [(True, False), (True, True), (False, False)])
async def test_a_stream_that_has_grown_since_its_restore_is_recognized_before_acks_are_sent(
    owes_acks: bool, same: bool, autojump_clock: MockClock
) -> None:
    """Its state alone does not show that it was restored."""
    server = FarServer(0.1)
    server.stored = [(1, CREATED), (20, "2026-02-03T04:05:09Z")]
    looked_up = "2026-02-03T04:05:06Z"
    server.found = looked_up if same else "2026-02-03T04:05:07Z"
    spec = replace(SPEC, stream_created=CREATED, start_sequence=11, last_sequence=10, owes_acks=owes_acks)
    spec = replace(spec, last_time=nanoseconds(looked_up))
    found = await ensure_consumer(Api(cast(Any, server), Denials()), spec, NONE, NONE)
    assert found.went_back == ("it has another message under sequence 10" if owes_acks and not same else None)
    assert server.lookups == owes_acks, "a request for each route only if it is needed"


@pytest.mark.parametrize("again", [False, True])
async def test_a_durable_that_was_created_again_is_reported_as_deleted(again: bool, autojump_clock: MockClock) -> None:
    server = FarServer(0.1)
    api = Api(cast(Any, server), Denials())
    found = await ensure_consumer(api, SPEC, NONE, NONE)
    consumer = WirePullConsumer(SPEC, found, b"_INBOX.x", api, Lookups(api), lambda _: None, NONE, NONE, NONE)
    if again:
        server.created = "2026-02-03T04:05:06Z"
        with pytest.raises(SourceError, match="was deleted and created again") as raised:
            await consumer.check()
        assert raised.value.reason == reasons.CONSUMER_DELETED
    else:
        await consumer.check()
