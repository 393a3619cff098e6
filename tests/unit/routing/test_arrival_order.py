"""Held messages that are released are taken before later ones of their key, however many wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.schedule import ArrivalOrder

Message = tuple[int, bytes]


class Asked:
    """Counts how often an order asks for the key or the place of a message."""

    def __init__(self) -> None:
        self.count = 0

    def key(self, message: Message) -> bytes:
        self.count += 1
        return message[1]

    def place(self, message: Message) -> int:
        self.count += 1
        return message[0]


def order_of(asked: Asked | None = None) -> ArrivalOrder[Message]:
    asked = asked or Asked()
    return ArrivalOrder(asked.key, asked.place)


def taken(order: ArrivalOrder[Message], most: int = 10**6) -> list[Message]:
    found: list[Message] = []
    while len(found) < most and (message := order.take()) is not None:
        found.append(message)
    return found


def test_a_released_message_is_taken_before_later_ones_of_its_key() -> None:
    order = order_of()
    order.waiting += [(3, b"a"), (4, b"b"), (5, b"a")]
    order.release([(1, b"a"), (2, b"a")])
    order.waiting += [(6, b"a"), (7, b"b")]
    assert (order.count, order.as_added) == (7, False)
    found = taken(order)
    assert [place for place, key in found if key == b"a"] == [1, 2, 3, 5, 6]
    assert [place for place, key in found if key == b"b"] == [4, 7]
    assert order.as_added


def test_a_released_message_does_not_wait_for_later_messages_of_other_keys() -> None:
    order = order_of()
    order.waiting += [(2, b"b"), (3, b"c")]
    order.release([(1, b"a")])
    order.waiting += [(4, b"b")]
    assert taken(order) == [(2, b"b"), (3, b"c"), (1, b"a"), (4, b"b")]


@given(st.lists(st.tuples(st.sampled_from(["add", "add", "take", "put back"]), st.sampled_from([b"a", b"b"]))))
def test_each_key_keeps_its_order_and_nothing_is_lost_or_doubled(steps: list[tuple[str, bytes]]) -> None:
    order = order_of()
    added: list[Message] = []
    found: list[Message] = []
    for step, key in steps:
        if step == "add":
            added.append((len(added), key))
            order.waiting.append(added[-1])
        elif step == "take":
            found += taken(order, 1)
        else:
            held = taken(order, 2)
            order.release(sorted(one for one in held if one[1] == key))
            for one in reversed([one for one in held if one[1] != key]):
                order.waiting.appendleft(one)
        assert order.count == len(added) - len(found)
    found += order.clear()
    assert sorted(found) == added
    for wanted in (b"a", b"b"):
        places = [place for place, key in found if key == wanted]
        assert places == sorted(places)


@pytest.mark.parametrize("key", [b"a", b"other"])
def test_a_release_costs_the_same_however_many_messages_wait(key: bytes) -> None:
    def asked(waiting: int) -> int:
        counted = Asked()
        order = order_of(counted)
        order.waiting += [(place, b"a" if place % 2 else b"b") for place in range(1, waiting + 1)]
        order.release([(0, key)])
        taken(order, 8)
        return counted.count

    assert 0 < asked(1_000) == asked(4_000)


def test_each_of_many_releases_costs_the_same() -> None:
    def asked(messages: int) -> int:
        counted = Asked()
        order = order_of(counted)
        order.waiting += [(place, b"a") for place in range(messages, 2 * messages)]
        for place in range(messages):
            order.release([(place, b"a")])
        assert [place for place, _ in taken(order)] == [*range(2 * messages)]
        return counted.count

    assert asked(4_000) == 4 * asked(1_000)
