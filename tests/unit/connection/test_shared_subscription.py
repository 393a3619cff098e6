"""A subscription shared by several routes, on links controlled by the test."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.errors import SourceError
from router_trio.link import Deliver, Link, SharedDelivery


class StubLink:
    """A link that records subscriptions and is itself the subscription."""

    def __init__(self) -> None:
        self.delivers: list[Deliver] = []
        self.log: list[str] = []
        self.refused: SourceError | None = None
        self.answers_after = 0.0

    async def subscribe(self, subject: str, deliver: Deliver, *, queue: str | None = None) -> StubLink:
        self.log.append(f"SUB {subject} {queue}")
        await trio.sleep(self.answers_after)
        if self.refused is not None:
            raise self.refused
        self.delivers.append(deliver)
        return self

    def deliver_to(self, deliver: Deliver | SharedDelivery) -> None:
        assert not isinstance(deliver, SharedDelivery)
        self.delivers[-1] = deliver

    async def fence(self) -> None:
        self.log.append("fence")
        await trio.sleep(1)

    def close(self) -> None:
        self.log.append("close")
        self.delivers.clear()

    async def drain(self) -> None:
        self.log.append("drain")
        await trio.sleep(1)

    def receive(self, *payloads: bytes) -> None:
        for deliver in self.delivers:
            deliver([(b"in", b"", 0, len(one), b"%d\r\n%b\r\n" % (len(one), one)) for one in payloads])


def taking() -> tuple[list[bytes], Deliver]:
    """Return a list, and a delivery that appends to it."""
    taken: list[bytes] = []
    return taken, lambda batch: taken.extend(raw[4] for raw in batch)


def link_of(stub: StubLink) -> Link:
    return cast(Link, stub)


async def test_every_member_gets_the_messages_of_the_shared_subscription(autojump_clock: MockClock) -> None:
    stub, shared = StubLink(), SharedSubscription("in", "group")
    stub.answers_after = 1.0
    first, take_first = taking()
    second, take_second = taking()

    def take_together(touched: Any) -> None:
        for batch in touched:
            assert batch.key == "route"
            take_second(batch)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.join, link_of(stub), take_first)
        nursery.start_soon(shared.join, link_of(stub), SharedDelivery(take_together, "route"))
    assert stub.log == ["SUB in group"]
    stub.receive(b"1", b"2")
    assert first == second == [b"1\r\n1\r\n", b"1\r\n2\r\n"]


async def test_a_leaving_member_gets_what_was_sent_before_and_the_last_one_unsubscribes(
    autojump_clock: MockClock,
) -> None:
    stub, shared = StubLink(), SharedSubscription("in", None)
    first, take_first = taking()
    second, take_second = taking()
    leaving = await shared.join(link_of(stub), take_first)
    staying = await shared.join(link_of(stub), take_second)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leaving.drain)
        await wait_all_tasks_blocked()
        stub.receive(b"1")
    stub.receive(b"2")
    assert (len(first), len(second)) == (1, 2)
    await leaving.drain()
    leaving.close()
    assert stub.log == ["SUB in None", "fence"]
    await staying.drain()
    assert stub.log == ["SUB in None", "fence", "drain", "close"]
    stub.receive(b"3")
    assert (len(first), len(second)) == (1, 2)


async def test_both_members_can_leave_at_the_same_time(autojump_clock: MockClock) -> None:
    stub, shared = StubLink(), SharedSubscription("in", None)
    members = [await shared.join(link_of(stub), taking()[1]) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(member.drain)
    assert stub.log[-1] == "close"


async def test_messages_arriving_while_the_last_members_drain_are_delivered_to_all_of_them(
    autojump_clock: MockClock,
) -> None:
    stub, shared = StubLink(), SharedSubscription("in", None)
    first, take_first = taking()
    second, take_second = taking()
    members = [await shared.join(link_of(stub), take) for take in (take_first, take_second)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(members[0].drain)
        await trio.sleep(0.5)
        nursery.start_soon(members[1].drain)
        while "close" not in stub.log:
            stub.receive(b"1")
            sent = len(first), len(second)
            await trio.sleep(0.1)
    assert sent == (len(first), len(second))
    assert len(first) == len(second) > 5
    assert stub.log.count("drain") == 1


async def test_each_link_has_its_own_subscription_and_members(autojump_clock: MockClock) -> None:
    old, new, shared = StubLink(), StubLink(), SharedSubscription("in", None)
    taken, take = taking()
    before = await shared.join(link_of(old), take)
    await shared.join(link_of(new), take)
    new.receive(b"1")
    assert len(taken) == 1
    before.close()
    await before.drain()
    new.receive(b"2")
    assert len(taken) == 2
    assert new.log == ["SUB in None"]


async def test_a_refusal_is_raised_in_every_member_and_the_next_join_tries_again(autojump_clock: MockClock) -> None:
    stub, shared = StubLink(), SharedSubscription("in", None)
    stub.refused = SourceError("no", reason="permission_denied")
    for _ in range(2):
        with pytest.raises(SourceError):
            await shared.join(link_of(stub), taking()[1])
    stub.refused = None
    taken, take = taking()
    await shared.join(link_of(stub), take)
    stub.receive(b"1")
    assert len(taken) == 1
    assert stub.log == ["SUB in None"] * 3


async def test_a_lone_member_gets_messages_directly_and_several_through_the_shared_delivery(
    autojump_clock: MockClock,
) -> None:
    stub, shared = StubLink(), SharedSubscription("in", None)
    first, take_first = taking()
    second, take_second = taking()
    staying = await shared.join(link_of(stub), take_first)
    assert stub.delivers == [take_first]
    other = await shared.join(link_of(stub), take_second)
    assert stub.delivers != [take_first]
    stub.receive(b"1")
    await other.drain()
    assert stub.delivers == [take_first]
    stub.receive(b"2")
    assert (len(first), len(second)) == (2, 1)
    await staying.drain()


async def test_deliveries_can_be_switched_to_another_handler_between_two_messages(autojump_clock: MockClock) -> None:
    stub, shared = StubLink(), SharedSubscription("in", None)
    old, take_old = taking()
    new, take_new = taking()
    others, take_other = taking()
    member = await shared.join(link_of(stub), take_old)
    stub.receive(b"1")
    member.deliver_to(take_new)
    assert stub.delivers == [take_new]
    stub.receive(b"2")
    await shared.join(link_of(stub), take_other)
    member.deliver_to(take_old)
    stub.receive(b"3")
    assert (old, new, others) == ([b"1\r\n1\r\n", b"1\r\n3\r\n"], [b"1\r\n2\r\n"], [b"1\r\n3\r\n"])
    assert stub.log == ["SUB in None"]
