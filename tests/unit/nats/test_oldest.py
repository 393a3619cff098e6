"""Lookups of a consumer's oldest message: how often, for which filters, and what happens without the permission."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import SourceError
from router_trio.link import ConsumerSpec, StoredAt
from router_trio.nats.jetstream.api import NOT_FOUND, ApiError, ConsumerInfo, Stored, consumer_info
from router_trio.nats.jetstream.oldest import DENIED_FOR, KEPT_FOR, MOST_FILTERS, OldestMessage
from tests.support.raw_server import consumer_answer

TIME = "2026-01-01T00:00:00Z"
TIME_NS = 1_767_225_600_000_000_000


class Stream:
    """An API with one stream: the sequences of its messages, by subject."""

    def __init__(self, **messages: list[int]) -> None:
        self.messages = messages
        self.asked = 0
        self.error: Exception | None = None

    async def ask(self, subject: str, body: bytes, *_: object) -> Stored:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        asked = json.loads(body)
        behind = [one for one in self.messages.get(asked["next_by_subj"], ()) if one >= asked["seq"]]
        if not behind:
            raise ApiError(NOT_FOUND, 10037, "no message found")
        return Stored(min(behind), TIME)


def oldest_of(stream: Stream, *filters: str) -> OldestMessage:
    spec = ConsumerSpec("S", "d", filters, 30.0, -1, 1000)
    return OldestMessage(cast(Any, stream), spec, trio.CapacityLimiter(1))


def info(*, floor: int = 0, pending: int = 0, unacked: int = 0) -> ConsumerInfo:
    answer = consumer_answer("S", "d") | {"num_pending": pending, "num_ack_pending": unacked}
    return consumer_info(json.dumps(answer | {"ack_floor": {"consumer_seq": floor, "stream_seq": floor}}).encode())


async def test_it_is_the_first_one_behind_the_ack_floor_that_a_filter_matches() -> None:
    stream = Stream(a=[3, 9], b=[5], c=[4])
    oldest = oldest_of(stream, "a", "b")
    assert await oldest.find(info(pending=3)) == StoredAt(3, TIME_NS)
    assert await oldest.find(info(floor=3, pending=2)) == StoredAt(5, TIME_NS)
    assert await oldest.find(info(floor=5, unacked=1)) == StoredAt(9, TIME_NS)
    assert await oldest.find(info(floor=9, pending=1)) is None, "deleted meanwhile"


async def test_nothing_is_looked_up_where_nothing_is_left() -> None:
    stream = Stream()
    assert await oldest_of(stream).find(info(floor=7)) is None
    assert stream.asked == 0


async def test_an_answer_is_kept_while_the_floor_stands_still(autojump_clock: MockClock) -> None:
    stream = Stream(a=[3, 4, 5])
    oldest = oldest_of(stream, "a")
    assert await oldest.find(info(pending=2)) == StoredAt(3, TIME_NS)
    assert await oldest.find(info(pending=3)) == StoredAt(3, TIME_NS)
    assert stream.asked == 1
    stream.messages["a"] = [4, 5]
    assert await oldest.find(info(pending=2)) == StoredAt(4, TIME_NS), "fewer are left, so it may be gone"
    assert await oldest.find(info(pending=2)) == StoredAt(4, TIME_NS)
    assert stream.asked == 2
    await trio.sleep(KEPT_FOR)
    await oldest.find(info(pending=2))
    assert stream.asked == 3


async def test_a_denied_lookup_is_not_repeated_for_some_time(autojump_clock: MockClock) -> None:
    stream = Stream(a=[3])
    stream.error = SourceError("no permission", reason="permission_denied")
    oldest = oldest_of(stream, "a")
    for _ in range(3):
        assert await oldest.find(info(pending=1)) is None
    assert stream.asked == 1
    stream.error = None
    await trio.sleep(DENIED_FOR)
    assert await oldest.find(info(pending=1)) == StoredAt(3, TIME_NS)


@pytest.mark.parametrize("error", [TimeoutError(), ApiError(503, 0, "no leader")])
async def test_a_lookup_that_fails_is_repeated(error: Exception, autojump_clock: MockClock) -> None:
    stream = Stream(a=[3])
    stream.error = error
    oldest = oldest_of(stream, "a")
    assert await oldest.find(info(pending=1)) is None
    stream.error = None
    assert await oldest.find(info(pending=1)) == StoredAt(3, TIME_NS)


async def test_with_very_many_filters_nothing_is_looked_up() -> None:
    filters = [f"a{number}" for number in range(MOST_FILTERS + 1)]
    stream = Stream(a0=[1])
    assert await oldest_of(stream, *filters).find(info(pending=1)) is None
    assert await oldest_of(stream, *filters[1:]).find(info(pending=1)) is None
    assert stream.asked == MOST_FILTERS
