"""Messages by key: one of a key at a time, in order, keys in turn, and finished keys are forgotten."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.policy.key_queues import ActiveKeys, KeyQueues, KeyQueuesOfMany

Item = tuple[bytes, int]


def filled(*keys: bytes) -> KeyQueues[Item]:
    """Return queues with a message for each of these keys, in order; the number of each is its place."""
    queues: KeyQueues[Item] = KeyQueues()
    for place, key in enumerate(keys):
        queues.add(key, place, (key, place))
    return queues


def begun(queues: KeyQueues[Item]) -> list[Item]:
    """Begin every message that may begin."""
    found = []
    while (item := queues.take_next()) is not None:
        found.append(item)
    return found


def test_the_next_message_of_a_key_begins_when_the_previous_one_is_finished() -> None:
    queues = filled(b"a", b"a", b"b", b"a")
    assert (queues.may_begin, queues.behind, queues.count) == (2, 2, 4)
    first, other = begun(queues)
    assert (first, other) == ((b"a", 0), (b"b", 2))
    assert (queues.may_begin, queues.behind, queues.count) == (0, 2, 2)
    assert queues.finished(b"a", first)
    assert begun(queues) == [(b"a", 1)]


def test_keys_take_turns() -> None:
    queues = filled(b"hot", b"hot", b"hot", b"a", b"b")
    order = []
    while (item := queues.take_next()) is not None:
        order.append(item)
        queues.finished(item[0], item)
    assert [place for _, place in order] == [0, 3, 4, 1, 2]


def test_the_lowest_place_of_a_key_is_first_whenever_it_was_added() -> None:
    queues = filled(b"x")
    for place in (7, 5, 6):
        queues.add(b"a", place, (b"a", place))
    order = []
    while (item := queues.take_next()) is not None:
        order.append(item[1])
        queues.finished(item[0], item)
    assert order == [0, 5, 6, 7]


def test_only_an_active_message_is_finished() -> None:
    queues = filled(b"a", b"a")
    first = queues.take_next()
    assert first is not None
    assert not queues.finished(b"a", (b"a", 1))
    assert not queues.finished(b"b", first)
    assert queues.take_next() is None
    assert queues.finished(b"a", first)
    assert not queues.finished(b"a", first), "finished only once"


def test_a_key_is_forgotten_when_none_of_its_messages_is_left() -> None:
    queues: KeyQueues[Item] = KeyQueues()
    for number in range(10_000):
        key = b"%d" % number
        queues.add(key, number, (key, number))
        item = queues.take_next()
        assert item == (key, number)
        queues.finished(key, item)
    assert len(queues) == 0


def test_waiting_messages_are_cleared_in_order_and_active_ones_keep_their_key() -> None:
    queues = filled(b"b", b"a", b"b", b"a")
    first = queues.take_next()
    assert first == (b"b", 0)
    assert [place for _, place in queues.clear()] == [1, 2, 3]
    assert (queues.count, queues.may_begin, len(queues)) == (0, 0, 1)
    queues.add(b"b", 9, (b"b", 9))
    assert queues.take_next() is None
    queues.finished(b"b", first)
    assert queues.take_next() == (b"b", 9)


@given(st.lists(st.one_of(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 5)), max_size=80), st.integers(1, 4))
def test_messages_of_each_key_begin_in_order_one_at_a_time_and_all_are_finished(
    steps: list[bytes | int], most: int
) -> None:
    """A key adds a message of it; a number begins those that may, up to `most`, and finishes one of the active ones."""
    queues: KeyQueues[Item] = KeyQueues()
    finished: defaultdict[bytes, list[int]] = defaultdict(list)
    active: list[Item] = []

    def begin() -> None:
        while len(active) < most and (item := queues.take_next()) is not None:
            assert item[0] not in {key for key, _ in active}
            active.append(item)
            finished[item[0]].append(item[1])

    added = 0
    for step in steps:
        if isinstance(step, bytes):
            queues.add(step, added, (step, added))
            added += 1
            continue
        begin()
        if active:
            item = active.pop(step % len(active))
            assert queues.finished(item[0], item)
        waiting = {key for key, number in ((key, queues.waiting_of(key)) for key in (b"a", b"b", b"c")) if number}
        assert queues.may_begin == len(waiting - {key for key, _ in active})
    while queues.count or active:
        begin()
        item = active.pop(0)
        queues.finished(item[0], item)
    assert sum(map(len, finished.values())) == added
    assert all(places == sorted(places) for places in finished.values())
    assert len(queues) == 0


# --- the queues of several consumers ---


@given(st.data())
def test_of_several_queues_one_has_an_active_message_of_a_key(data: st.DataObject) -> None:
    """Draw what consumers do. Nothing waits for ever, and a queue that was let go is heard of."""
    woken = [0]

    def wake() -> None:
        woken[0] += 1

    shared = ActiveKeys[Any](wake)
    queues = [KeyQueuesOfMany(shared) for _ in range(3)]
    active: list[tuple[int, bytes, object]] = []
    place = waiting = 0

    def take(index: int) -> None:
        nonlocal waiting
        item = queues[index].take_next()
        if item is not None:
            waiting -= 1
            key, _ = item
            assert key not in [one for _, one, _ in active], "two of a key"
            active.append((index, key, item))

    for _ in range(data.draw(st.integers(1, 40))):
        what = data.draw(st.sampled_from(["add", "add", "take", "take", "finish", "clear"]))
        index = data.draw(st.integers(0, 2))
        if what == "add":
            key = data.draw(st.sampled_from([b"a", b"b"]))
            place += 1
            waiting += 1
            queues[index].add(key, place, (key, place))
        elif what == "take":
            take(index)
        elif what == "finish" and active:
            at, key, item = active.pop(data.draw(st.integers(0, len(active) - 1)))
            assert queues[at].finished(key, item)
        elif what == "clear" and data.draw(st.booleans()):
            waiting -= len(queues[index].clear())
        assert sum(one.count for one in queues) == waiting
    while waiting or active:
        before = waiting, len(active), woken[0]
        for at, key, item in active:
            assert queues[at].finished(key, item)
        active.clear()
        for index in range(3):
            take(index)
        assert (waiting, len(active), woken[0]) != before, "messages that wait for nothing"
    assert not any(len(one) for one in queues)


def test_a_queue_that_waits_for_another_one_goes_next() -> None:
    woken: list[bool] = []
    shared = ActiveKeys[str](lambda: woken.append(True))
    one, other = KeyQueuesOfMany(shared), KeyQueuesOfMany(shared)
    for place, item in enumerate(["first", "second"]):
        one.add(b"k", place, item)
    other.add(b"k", 0, "of another consumer")
    assert one.take_next() == "first"
    assert other.take_next() is None
    assert not other.may_begin
    assert one.finished(b"k", "first")
    assert woken == [True]
    assert one.take_next() is None, "the other one has waited for longer"
    assert other.take_next() == "of another consumer"
    assert other.finished(b"k", "of another consumer")
    assert one.take_next() == "second"


def test_messages_that_were_begun_with_other_keys_keep_their_new_key_from_others() -> None:
    queues = KeyQueues[str]()
    for item in ("one", "two", "three"):
        queues.activate(b"k", item)
    queues.add(b"k", 0, "next")
    for item in ("two", "one", "three"):
        assert queues.take_next() is None
        assert queues.finished(b"k", item)
        assert not queues.finished(b"k", item), "once"
    assert queues.take_next() == "next"
