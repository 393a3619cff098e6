"""Messages by their keys: one of a key at a time, in order, keys in turn, and no key is known for nothing."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from router_trio.routing.policy.key_queues import KeyQueues

Item = tuple[bytes, int]


def filled(*keys: bytes) -> KeyQueues[Item]:
    """One message for each of these keys, in order; the number of each is its place."""
    queues: KeyQueues[Item] = KeyQueues()
    for place, key in enumerate(keys):
        queues.add(key, place, (key, place))
    return queues


def begun(queues: KeyQueues[Item]) -> list[Item]:
    """Begin all that may."""
    found = []
    while (item := queues.take_next()) is not None:
        found.append(item)
    return found


def test_one_of_a_key_begins_and_the_next_when_that_is_finished() -> None:
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


def test_of_a_key_the_lowest_place_is_first_whenever_it_came() -> None:
    queues = filled(b"x")
    for place in (7, 5, 6):
        queues.add(b"a", place, (b"a", place))
    order = []
    while (item := queues.take_next()) is not None:
        order.append(item[1])
        queues.finished(item[0], item)
    assert order == [0, 5, 6, 7]


def test_only_what_is_at_work_is_finished() -> None:
    queues = filled(b"a", b"a")
    first = queues.take_next()
    assert first is not None
    assert not queues.finished(b"a", (b"a", 1))
    assert not queues.finished(b"b", first)
    assert queues.take_next() is None
    assert queues.finished(b"a", first)
    assert not queues.finished(b"a", first), "once"


def test_a_key_is_known_while_something_of_it_is_there() -> None:
    queues: KeyQueues[Item] = KeyQueues()
    for number in range(10_000):
        key = b"%d" % number
        queues.add(key, number, (key, number))
        item = queues.take_next()
        assert item == (key, number)
        queues.finished(key, item)
    assert len(queues) == 0


def test_what_waits_is_taken_out_in_order_and_what_is_at_work_still_keeps_its_key() -> None:
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
def test_each_key_goes_in_order_one_at_a_time_and_all_go(steps: list[bytes | int], most: int) -> None:
    """A key adds a message of it; a number begins what may, up to `most`, and finishes one of those at work."""
    queues: KeyQueues[Item] = KeyQueues()
    went: defaultdict[bytes, list[int]] = defaultdict(list)
    at_work: list[Item] = []

    def begin() -> None:
        while len(at_work) < most and (item := queues.take_next()) is not None:
            assert item[0] not in {key for key, _ in at_work}
            at_work.append(item)
            went[item[0]].append(item[1])

    added = 0
    for step in steps:
        if isinstance(step, bytes):
            queues.add(step, added, (step, added))
            added += 1
            continue
        begin()
        if at_work:
            item = at_work.pop(step % len(at_work))
            assert queues.finished(item[0], item)
        waiting = {key for key, number in ((key, queues.waiting_of(key)) for key in (b"a", b"b", b"c")) if number}
        assert queues.may_begin == len(waiting - {key for key, _ in at_work})
    while queues.count or at_work:
        begin()
        item = at_work.pop(0)
        queues.finished(item[0], item)
    assert sum(map(len, went.values())) == added
    assert all(places == sorted(places) for places in went.values())
    assert len(queues) == 0
