"""Validation and matching of subjects and patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import RouterError, SubjectError
from router_trio.subjects.patterns import (
    is_valid_subject,
    matches,
    overlaps,
    validate_pattern,
    validate_subject,
)

# A small alphabet, so that random patterns and subjects often match.
TOKENS = st.sampled_from(["a", "b", "ab"])
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, ">"] if rest else tokens),
    st.lists(TOKENS | st.just("*"), min_size=1, max_size=4),
    st.booleans(),
) | st.just(">")


def reference_matches(pattern: str, subject: str) -> bool:
    """Match by the definition, token by token and without optimizations."""
    return _reference(pattern.split("."), subject.split("."))


def _reference(pattern: list[str], subject: list[str]) -> bool:
    if not pattern or not subject:
        return not pattern and not subject
    if pattern[0] == ">":
        return True
    return pattern[0] in ("*", subject[0]) and _reference(pattern[1:], subject[1:])


# --- validity --------------------------------------------------------------------------------------------------------

INVALID_FOR_BOTH = [
    ("", "empty: give it at least one token"),
    (".", "empty token"),
    ("a.", "empty token"),
    (".a", "empty token"),
    ("a..b", "empty token"),
    ("a b", "a space at position 1"),
    ("a.b\t", r"control character '\\t' at position 3"),
    ("a\r\nPUB b", r"control character '\\r'"),
    ("a\n", r"control character '\\n'"),
    ("a\x00b", r"control character '\\x00'"),
    ("a\x0bb", r"control character '\\x0b'"),
    ("a\x1b", r"control character '\\x1b'"),
    ("a\x7f", r"control character '\\x7f'"),
    ("a.\ud800", "unpaired surrogate"),
]


@pytest.mark.parametrize(
    "subject",
    ["a", "a.b.c", "$JS.API.INFO", "_INBOX.x.1", "größe.日本", "a*b.c>", "**", ">>", "a/b:c-d", "\udcc3.raw", "a\x80"],
)
def test_a_valid_subject_is_accepted(subject: str) -> None:
    validate_subject(subject)
    assert is_valid_subject(subject)


@pytest.mark.parametrize(("subject", "why"), INVALID_FOR_BOTH)
def test_an_invalid_subject_is_refused_with_a_reason(subject: str, why: str) -> None:
    with pytest.raises(SubjectError, match=why):
        validate_subject(subject)
    assert not is_valid_subject(subject)


@pytest.mark.parametrize(("pattern", "why"), INVALID_FOR_BOTH)
def test_an_invalid_pattern_is_refused_with_a_reason(pattern: str, why: str) -> None:
    with pytest.raises(SubjectError, match=why):
        validate_pattern(pattern)


@pytest.mark.parametrize(("subject", "wildcard"), [("*", "*"), ("a.*.b", "*"), (">", ">"), ("a.>", ">"), (">.a", ">")])
def test_a_wildcard_can_not_be_published_to(subject: str, wildcard: str) -> None:
    with pytest.raises(SubjectError, match=rf"the wildcard '\{wildcard}': one can subscribe to it but not publish"):
        validate_subject(subject)
    assert not is_valid_subject(subject)


@pytest.mark.parametrize("pattern", ["a", "*", ">", "a.*", "*.*.c", "a.>", "*.>", "$JS.>"])
def test_a_valid_pattern_is_accepted(pattern: str) -> None:
    validate_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a*", r"wildcard inside the token 'a\*'"),
        ("a.*b.c", r"wildcard inside the token '\*b'"),
        ("a.b>", "wildcard inside the token 'b>'"),
        ("**", "wildcard inside"),
        (">.a", "'>' before its last token"),
        ("a.>.b", "'>' before its last token"),
        (">.>", "'>' before its last token"),
    ],
)
def test_a_wildcard_must_be_a_token_and_the_full_wildcard_the_last(pattern: str, why: str) -> None:
    with pytest.raises(SubjectError, match=why):
        validate_pattern(pattern)


def test_the_error_names_the_subject_and_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^reply subject 'a b' has a space") as raised:
        validate_subject("a b", what="reply subject")
    assert isinstance(raised.value, RouterError)


@given(st.text(alphabet="ab.*> \n\x7fä\ud800", max_size=8))
def test_is_valid_subject_agrees_with_validate_subject(subject: str) -> None:
    try:
        validate_subject(subject)
    except SubjectError:
        assert not is_valid_subject(subject)
    else:
        assert is_valid_subject(subject)
        assert all(token not in ("", "*", ">") for token in subject.split("."))


# --- matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*", "a", True),
        ("*.*", "a", False),
        (">", "a", True),
        (">", "a.b.c", True),
        ("a.>", "a", False),
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        ("*.b.>", "a.b.c", True),
        ("*.b.>", "a.c.c", False),
        ("a*", "ab", False),
        ("a.b", "a.*", False),
        ("A", "a", False),
    ],
)
def test_a_pattern_matches_subjects(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected


@given(PATTERNS, SUBJECTS)
def test_matching_agrees_with_the_definition(pattern: str, subject: str) -> None:
    assert matches(pattern, subject) is reference_matches(pattern, subject)


@given(SUBJECTS)
def test_a_subject_matches_only_itself(subject: str) -> None:
    assert matches(subject, subject)
    assert not matches(subject, f"{subject}.a")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "*.b", True),
        ("a.*", "b.*", False),
        ("a.>", "a", False),
        ("a.>", "a.*", True),
        ("a.>", "*.b.c", True),
        ("*", "*.*", False),
        (">", "*", True),
        ("a.*.c", "a.b.>", True),
        ("a.*.c", "a.b.d", False),
    ],
)
def test_patterns_overlap(a: str, b: str, expected: bool) -> None:
    assert overlaps(a, b) is expected
    assert overlaps(b, a) is expected


@given(PATTERNS, PATTERNS, SUBJECTS)
def test_patterns_that_share_a_subject_overlap(a: str, b: str, subject: str) -> None:
    if matches(a, subject) and matches(b, subject):
        assert overlaps(a, b)


@given(PATTERNS, PATTERNS)
def test_patterns_that_overlap_share_a_subject(a: str, b: str) -> None:
    # The subject that both match, built from the more specific token at each position.
    length = max(len(a.split(".")), len(b.split(".")))
    left, right = (_widened(pattern, length) for pattern in (a, b))
    subject = ".".join("a" if x == y == "*" else y if x == "*" else x for x, y in zip(left, right, strict=False))
    assert overlaps(a, b) is (matches(a, subject) and matches(b, subject))


def _widened(pattern: str, length: int) -> list[str]:
    tokens = pattern.split(".")
    return tokens[:-1] + ["*"] * (length - len(tokens) + 1) if tokens[-1] == ">" else tokens
