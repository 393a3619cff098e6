"""Each event in words, as the code that emits it fills it, in a file that a person reads in a review.

`sentences.txt` has them by situation. After a change: `python -m tests.unit.events.situations`.
"""

from __future__ import annotations

from collections import Counter

import pytest

from router_trio import events
from router_trio.events import Event, catalogue
from router_trio.events.sentences import NAMES, counted, listed, listed_sentences, named_message
from tests.unit.events.situations.golden import GOLDEN, written
from tests.unit.events.situations.situation import SITUATIONS

SECTIONS = written(GOLDEN.read_text())


@pytest.mark.parametrize("title", SITUATIONS)
def test_the_sentences_of_a_situation_are_those_of_the_file(title: str) -> None:
    assert SITUATIONS[title].lines() == SECTIONS[title]


def test_the_file_has_no_other_situations() -> None:
    assert [*SECTIONS] == [*SITUATIONS]


def test_each_kind_of_event_has_a_sentence_of_its_own_in_the_file() -> None:
    codes = Counter(line.partition(" ")[0] for lines in SECTIONS.values() for line in lines)
    assert codes.keys() == {kind.code for kind in catalogue()}
    assert [kind for kind in catalogue() if kind.sentence is Event.sentence] == []


def test_each_situation_shows_all_that_it_is_about() -> None:
    for title, one in SITUATIONS.items():
        assert {line.partition(" ")[0] for line in SECTIONS[title]} == {kind.code for kind in one.kinds}, title


def test_a_kind_of_another_program_has_its_help_text_as_its_sentence() -> None:
    class Restocked(Event):
        """The shelves were restocked.

        By whom is not known.
        """

        code = "SHOP_RESTOCKED"
        level = events.Level.INFO

    assert Restocked(at=0.0).sentence() == "The shelves were restocked."


def test_a_name_and_a_number_that_are_not_known_are_left_out() -> None:
    assert named_message(None, None, None) == "a message"
    assert named_message(None, "IN", 7) == "message 7 of stream IN"
    assert named_message("in.x", None, None) == "a message on in.x"


@pytest.mark.parametrize(("number", "text"), [(0, "0 messages"), (1, "1 message"), (2, "2 messages")])
def test_only_one_is_singular(number: int, text: str) -> None:
    assert counted(number, "message") == text


def test_a_list_is_cut_and_counts_what_it_leaves_out() -> None:
    names = tuple("abcdefg")
    assert listed(()) == "nothing"
    assert listed(names[:NAMES]) == "a, b, c, d, e"
    assert listed(names) == "a, b, c, d, e and 2 more"
    assert listed(names, most=7) == "a, b, c, d, e and at least 2 more"
    assert listed_sentences(names[:2], 2) == "a; b"
    assert listed_sentences(names, 100) == "a; b; c; d; e; and 95 more"
