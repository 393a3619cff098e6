"""Functions on strings that avoid Python's own methods, which are slow for some inputs that a sender may choose."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from router_trio.expressions.functions import strings
from tests.support.drawn import examples


@given(st.text(alphabet=" \t\x1c\x1f\x85\u3000a\u200b", max_size=8))
@settings(max_examples=examples(1000))
def test_trim_removes_unicode_white_space(text: str) -> None:
    quickly, strings.QUICKLY_TRIMMED = strings.QUICKLY_TRIMMED, -1
    try:
        assert strings.trim(text) == text.strip(strings.WHITE_SPACE)
    finally:
        strings.QUICKLY_TRIMMED = quickly


@given(st.text(alphabet="aZ\xdf\u0130\u212a\udc80\ud83d\U00010400", max_size=8))
def test_only_the_case_of_ascii_letters_changes(text: str) -> None:
    assert strings.lower_ascii(text) == "".join(one.lower() if one.isascii() else one for one in text)
    assert strings.upper_ascii(text) == "".join(one.upper() if one.isascii() else one for one in text)


@given(st.text(alphabet="ab\u4e00", max_size=12), st.text(alphabet="ab\u4e00", max_size=4), st.integers(0, 12))
@settings(max_examples=examples(1000))
def test_last_index_of_long_texts_equals_rfind(text: str, part: str, start: int) -> None:
    before = strings.last_index_of(text, part), strings.last_index_of(text, part, min(start, len(text)))
    quickly, strings.QUICKLY_FOUND = strings.QUICKLY_FOUND, -1
    try:
        after = strings.last_index_of(text, part), strings.last_index_of(text, part, min(start, len(text)))
    finally:
        strings.QUICKLY_FOUND = quickly
    assert before == after
