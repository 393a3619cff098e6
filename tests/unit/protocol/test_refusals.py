"""Permission violations in `-ERR` lines."""

from __future__ import annotations

import pytest

from router_trio.protocol.refusals import PUBLISH, REPLY, SUBSCRIPTION, Denied, read_denied, unquote

# Bytes, and their quoting by Go's strconv.Quote.
QUOTED = [
    (rb"", b""),
    (rb"a.b", b"a.b"),
    (rb"a\"b", b'a"b'),
    (rb"a\\b", b"a\\b"),
    (rb"a\\x41", b"a\\x41"),
    (rb"\a\b\f\n\r\t\v", b"\a\b\f\n\r\t\v"),
    (rb"\x00\x7f\xff\xfe", b"\x00\x7f\xff\xfe"),
    (rb"\u2028\ufeff", "\u2028\ufeff".encode()),
    (rb"\U000e0001", "\U000e0001".encode()),
    ("ü\U0001f600".encode(), "ü\U0001f600".encode()),
    (rb"'", b"'"),
]


@pytest.mark.parametrize(("quoted", "subject"), QUOTED, ids=range(len(QUOTED)))
def test_a_subject_quoted_by_go_is_read(quoted: bytes, subject: bytes) -> None:
    assert unquote(quoted) == subject
    words = b'Permissions Violation for Publish to "%b"' % quoted
    assert read_denied(words) == Denied(PUBLISH, subject)
    assert read_denied(words.replace(b"Publish", b"Subscription")) == Denied(SUBSCRIPTION, subject)
    assert read_denied(words.replace(b"to", b"with Reply of")) == Denied(REPLY, subject)


@pytest.mark.parametrize(("quoted", "queue"), QUOTED, ids=range(len(QUOTED)))
def test_the_queue_and_the_id_of_a_subscription_are_read(quoted: bytes, queue: bytes) -> None:
    words = b'Permissions Violation for Subscription to "in.\\"x" using queue "%b"' % quoted
    assert read_denied(words) == Denied(SUBSCRIPTION, b'in."x', queue)
    assert read_denied(words + b' (sid "12")') == Denied(SUBSCRIPTION, b'in."x', queue, b"12")
    assert read_denied(b'Permissions Violation for Subscription to "a" (sid "7")') == Denied(
        SUBSCRIPTION, b"a", None, b"7"
    )


@pytest.mark.parametrize(
    "words",
    [
        b"Permissions Violation",
        b"Permissions Violation for Publish",
        b'Permissions Violation for Publish to "never closed',
        b'Permissions Violation for Publish to "\\q"',
        b'Permissions Violation for Publish to "\\xg0"',
        b'Permissions Violation for Publish to "\\U00110000"',
        b'Permissions Violation for Publish to "\\ud800"',
        b'Permissions Violation for Other to "a"',
    ],
)
def test_an_error_that_can_not_be_parsed_names_nothing(words: bytes) -> None:
    assert read_denied(words) is None
