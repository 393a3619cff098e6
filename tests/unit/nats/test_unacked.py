"""Which messages of a consumer are looked up, without a server: cases in which no request is needed."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from router_trio.nats.jetstream.api import Stored
from router_trio.nats.jetstream.unacked import FEW, MOST, find_between

NOBODY = cast(Any, None)
"""An API that must not be called."""

FREE = trio.CapacityLimiter(1)


@pytest.mark.parametrize("wanted", [(), (">",)])
async def test_without_a_filter_all_messages_are_the_consumers_up_to_a_bound(wanted: tuple[str, ...]) -> None:
    assert await find_between(NOBODY, "S", wanted, range(7, 10), 1, FREE) == [7, 8, 9]
    assert await find_between(NOBODY, "S", wanted, range(1, MOST + 1), 1, FREE) == list(range(1, MOST + 1))
    assert await find_between(NOBODY, "S", wanted, range(1, MOST + 2), 1, FREE) is None


async def test_with_a_filter_that_takes_most_messages_no_request_is_made() -> None:
    assert await find_between(NOBODY, "S", ["a.*"], range(5), 3, FREE) == list(range(5))
    assert await find_between(NOBODY, "S", ["a.*"], range(0), 0, FREE) == []
    assert await find_between(NOBODY, "S", ["a.*"], range(MOST + 1), MOST, FREE) is None


async def test_with_many_unacked_messages_all_in_between_are_taken() -> None:
    assert await find_between(NOBODY, "S", ["a.*"], range(MOST), FEW + 1, FREE) == list(range(MOST))


class Slow:
    """An API that answers once a second."""

    async def ask(self, subject: str, body: bytes, *_: object) -> Stored:
        await trio.sleep(1.0)
        return Stored(json.loads(body)["seq"], "")


async def test_messages_that_cannot_be_looked_up_soon_are_taken_unchecked(autojump_clock: MockClock) -> None:
    api = cast(Any, Slow())
    started_at = trio.current_time()
    assert await find_between(api, "S", ["a.*"], range(1, 101), 3, FREE) == list(range(1, 101))
    assert trio.current_time() - started_at <= 1.0
    assert await find_between(api, "S", ["a.*"], range(1, MOST + 2), 3, FREE) is None
