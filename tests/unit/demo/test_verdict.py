"""The demo's verdict must notice every kind of loss: otherwise it proves nothing."""

from __future__ import annotations

from typing import Any

from router_trio.demo.verdict import Tally, judge, tally

SENT = {"a": [1, 2, 3], "b": [1, 2]}
ARRIVED = [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3)]


def test_all_messages_arrived_once_and_in_order() -> None:
    found = tally(SENT, ARRIVED)
    assert found == Tally(sent=5, stored=5, missing=0, repeated=0, out_of_order=0, unexpected=0)
    assert found.exact
    assert str(found) == "5 of 5 arrived, each once and in order"


def test_a_missing_message_is_noticed() -> None:
    found = tally(SENT, ARRIVED[:-1])
    assert (found.missing, found.exact, found.complete) == (1, False, False)
    assert str(found) == "4 arrived of 5: 1 missing"


def test_a_repeated_message_is_complete_but_not_exact() -> None:
    found = tally(SENT, [*ARRIVED, ("a", 1)])
    assert (found.repeated, found.out_of_order, found.exact, found.complete) == (1, 0, False, True)


def test_order_counts_within_a_subject_only() -> None:
    assert tally(SENT, [("b", 1), ("b", 2), ("a", 1), ("a", 2), ("a", 3)]).exact
    found = tally(SENT, [("a", 2), ("a", 1), ("a", 3), ("b", 1), ("b", 2)])
    assert (found.out_of_order, found.complete) == (1, False)


def test_a_message_that_was_never_sent_is_noticed() -> None:
    found = tally(SENT, [*ARRIVED, ("b", 3)])
    assert (found.unexpected, found.complete) == (1, False)


EXACT = tally(SENT, ARRIVED)
TWICE = tally(SENT, [*ARRIVED, ("a", 1)])
BOOK = {
    "accepted": 10,
    "pending": 0,
    "in_flight": 0,
    "settled": {"fenced": 6, "acked": 4, "dropped": 0, "failed": 0, "failed_open": 0},
}
ROUTE_BOOK = {
    "received": 7,
    "in_hand": 0,
    "settled": {
        "routed": 5,
        "filtered": 0,
        "dead_lettered": 0,
        "given_up": 0,
        "returned": 2,
        "duplicate": 0,
        "lost": 0,
    },
}


def verdict(**changes: Any) -> tuple[bool, str]:
    facts: dict[str, Any] = {
        "published": {"orders": 5},
        "fates": {"acked": 5},
        "refused": {},
        "tallies": {"ARCHIVE": EXACT, "READINGS": EXACT, "AUDIT": EXACT},
        "ledger": {"main": BOOK},
        "route_ledgers": {"orders": ROUTE_BOOK, "payments": ROUTE_BOOK},
    }
    found = judge(**(facts | changes))
    return found.passed, "\n".join(found.lines)


def test_a_good_verdict_has_the_ledger() -> None:
    good, text = verdict()
    assert good
    assert text.endswith("Nothing was lost.")
    lines = text.splitlines()
    heads = next(line for line in lines if "accepted" in line).split()
    book = next(line for line in lines if line.startswith("main")).split()
    assert dict(zip(heads, book, strict=True)) == {
        "connection": "main", "accepted": "10", "pending": "0", "in_flight": "0",
        "fenced": "6", "acked": "4", "dropped": "0", "failed": "0", "failed_open": "0",
    }  # fmt: skip
    assert "orders    7 received = 0 in hand + 5 routed + 2 returned" in lines
    assert "payments  7 received = 0 in hand + 5 routed + 2 returned" in lines


def test_a_core_message_may_arrive_twice_but_a_stream_message_may_not() -> None:
    assert verdict(tallies={"READINGS": TWICE, "AUDIT": TWICE})[0]
    good, text = verdict(tallies={"ARCHIVE": TWICE})
    assert not good
    assert "LOST: route orders: 6 arrived of 5: 1 twice or more" in text


def test_every_other_fault_makes_it_bad() -> None:
    missing = tally(SENT, ARRIVED[1:])
    for changes, fault in (
        ({"tallies": {"READINGS": missing}}, "route readings: 4 arrived of 5: 1 missing"),
        ({"fates": {"acked": 4, "dropped (shutdown)": 1}}, "1 publishes were settled as dropped (shutdown)"),
        ({"fates": {"acked": 4}, "refused": {"queue_full": 1}}, "1 publishes were refused: queue_full"),
        ({"fates": {"acked": 4}}, "1 publishes were not settled"),
        ({"ledger": {"main": BOOK | {"accepted": 11}}}, "the ledger of main is off by 1"),
        ({"ledger": {"main": BOOK | {"accepted": 11, "pending": 1}}}, "main has 1 pending and 0 in flight"),
        ({"route_ledgers": {"eu": ROUTE_BOOK | {"received": 6}}}, "the ledger of the route eu is off by -1"),
        ({"route_ledgers": {"eu": ROUTE_BOOK | {"received": 8, "in_hand": 1}}}, "the route eu has 1 in hand"),
    ):
        good, text = verdict(**changes)
        assert not good, changes
        assert f"LOST: {fault}" in text
        assert "Nothing was lost" not in text
