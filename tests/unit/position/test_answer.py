"""The text of a position: what each number counts, and how one, none and several are worded."""

from __future__ import annotations

from random import Random

import pytest

from router_trio.position.answer import Answer
from router_trio.position.decision import Position
from router_trio.position.standing import Standing

STANDING = Standing("SOURCE", "billing", 0, 0, 0, 0, 0, 0, "2026-11-29T06:00:00Z", {})


def lines(position: Position, **counts: int) -> list[str]:
    answer = Answer("copy", STANDING, "main", "COPY", [], position)
    for name, count in counts.items():
        setattr(answer, name, count)
    answer.lost = list(range(1, answer.missing + 1))
    return list(answer.lines())[2:]


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (Position(9, 0, 0, 0, 0), ["0 copies from there on"]),
        (Position(1, 0, 0, 0, 1), ["1 copy from there on; it repeats no acked message"]),
        (Position(1, 1, 1, 0, 1), ["1 copy from there on; it repeats an acked message"]),
        (Position(1, 0, 1, 0, 1), ["1 copy from there on; it may repeat an acked message"]),
        (Position(1, 0, 0, 0, 2), ["2 copies from there on; none of them repeats an acked message"]),
        (Position(1, 1, 1, 0, 3), ["3 copies from there on; 1 of them repeats an acked message"]),
        (Position(1, 0, 1, 0, 3), ["3 copies from there on; 0 to 1 of them repeat an acked message"]),
        (
            Position(1, 1200, 1300, 0, 5000),
            ["5,000 copies from there on; 1,200 to 1,300 of them repeat an acked message"],
        ),
        (
            Position(1, 0, 0, 1, 4),
            [
                "4 copies from there on; none of them repeats an acked message",
                "1 of these repeats an earlier copy of its message",
            ],
        ),
        (
            Position(1, 2, 2, 3, 9),
            [
                "9 copies from there on; 2 of them repeat an acked message",
                "3 of these repeat an earlier copy of their message",
            ],
        ),
    ],
)
def test_repeats_of_acked_messages_and_further_copies_are_distinguished(position: Position, text: list[str]) -> None:
    assert lines(position) == text


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"others": 1}, "1 message from there on is not a copy of route copy"),
        ({"others": 2}, "2 messages from there on are not copies of route copy"),
        ({"waiting": 1}, "1 message above the ack floor is not copied yet, and will be stored behind the position"),
        ({"waiting": 2}, "2 messages above the ack floor are not copied yet, and will be stored behind the position"),
        ({"filtered": 1}, "1 message above the ack floor gets no copy from the route"),
        ({"filtered": 2}, "2 messages above the ack floor get no copy from the route"),
        ({"missing": 1}, "1 message above the ack floor has no copy, and should have one: 1"),
        ({"missing": 2}, "2 messages above the ack floor have no copy, and should have one: 1, 2"),
    ],
)
def test_one_message_is_worded_as_one(counts: dict[str, int], text: str) -> None:
    assert lines(Position(1, 0, 0, 0, 0), **counts)[1:] == [text]


@pytest.mark.parametrize("seed", range(20))
def test_repeats_as_data_include_further_copies(seed: int) -> None:
    drawn = Random(seed)
    least = drawn.randrange(5)
    position = Position(1, least, least + drawn.randrange(3), drawn.randrange(3), 20)
    repeats = Answer("copy", STANDING, "main", "COPY", [], position).as_json()["repeats"]
    further = position.further
    assert repeats == {
        "least": least + further,
        "most": position.most_acked + further,
        "further_copies": further,
    }
