"""Which messages of a consumer are looked for, without a server: where nothing has to be asked."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from router_trio.nats.jetstream.unacked import MOST, find_between

NOBODY = cast(Any, None)
"""An API that can't be asked."""

FREE = trio.CapacityLimiter(1)


@pytest.mark.parametrize("wanted", [(), (">",)])
async def test_without_a_filter_all_messages_are_the_consumers_up_to_a_bound(wanted: tuple[str, ...]) -> None:
    assert await find_between(NOBODY, "S", wanted, range(7, 10), 1, FREE) == [7, 8, 9]
    assert await find_between(NOBODY, "S", wanted, range(1, MOST + 1), 1, FREE) == list(range(1, MOST + 1))
    assert await find_between(NOBODY, "S", wanted, range(1, MOST + 2), 1, FREE) is None


async def test_with_a_filter_that_takes_most_of_them_nobody_is_asked() -> None:
    assert await find_between(NOBODY, "S", ["a.*"], range(5), 3, FREE) == list(range(5))
    assert await find_between(NOBODY, "S", ["a.*"], range(0), 0, FREE) == []
    assert await find_between(NOBODY, "S", ["a.*"], range(MOST + 1), MOST, FREE) is None
