r"""Validation and matching of subjects and subscription patterns.

A subject is a sequence of tokens separated by dots. A pattern may also contain wildcards: `*` stands for exactly one
token, a final `>` for one or more. The rules are those of nats-server, except that control characters and unpaired
surrogates are refused as well. The server relays control characters, but `\x0b` and `\x0c` break the frame parsers of
other clients, so a router must not publish them.

Guarantees: everything here is pure and synchronous, and raises only `SubjectError`. `matches` and `overlaps` expect
valid arguments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from router_trio.errors import SubjectError
from router_trio.errors.quotes import quoted

CONTROL = re.compile("[\x00-\x20\x7f]")
"""Matches a character that is not allowed in a subject: a space, NUL or another ASCII control character."""

WILDCARDS = frozenset({"*", ">"})

INBOX_PREFIX = "_INBOX"
"""The default first token of the inboxes of NATS clients."""


def is_valid_subject(subject: str) -> bool:
    """Return True if `subject` can be published to, False if `validate_subject` would raise."""
    if (
        not subject
        or subject[0] == "."
        or subject[-1] == "."
        or ".." in subject
        or CONTROL.search(subject) is not None
        or not (subject.isascii() or _encodable(subject))
    ):
        return False
    # A wildcard character inside a longer token is an ordinary character.
    return not ("*" in subject or ">" in subject) or WILDCARDS.isdisjoint(subject.split("."))


def validate_subject(subject: str, *, what: str = "subject") -> None:
    """Check that `subject` can be published to.

    `what` names the subject in the text of the error, such as "reply subject". The length is not limited here; the
    server limits it by `max_control_line`.

    Raises SubjectError for an empty token, a wildcard token, whitespace, a control character, or text that can't be
    encoded as UTF-8.
    """
    if is_valid_subject(subject):
        return
    tokens = _checked_tokens(subject, what)
    wildcard = next(token for token in tokens if token in WILDCARDS)
    raise SubjectError(
        f"{what} {quoted(subject)} has the wildcard {wildcard!r}: one can subscribe to it but not publish to it; "
        "replace the wildcard by a token"
    )


def validate_pattern(pattern: str, *, what: str = "subject") -> None:
    """Check that `pattern` can be subscribed to. A subject without wildcards is a pattern too.

    nats-server accepts `a*` and `>a` as ordinary tokens. Here they are refused, because a user who writes one expects
    it to match more than itself.

    Raises SubjectError for an empty token, `*` or `>` inside a longer token, `>` before the last token, whitespace, a
    control character, or text that can't be encoded as UTF-8.
    """
    tokens = _checked_tokens(pattern, what)
    for token in tokens:
        if token not in WILDCARDS and ("*" in token or ">" in token):
            raise SubjectError(
                f"{what} {quoted(pattern)} has a wildcard inside the token {quoted(token)}: it would match only that "
                "text; let '*' or '>' stand alone between dots"
            )
    if ">" in tokens[:-1]:
        raise SubjectError(
            f"{what} {quoted(pattern)} has '>' before its last token: end the subject there, or use '*' for one token"
        )


def matches(pattern: str, subject: str) -> bool:
    """Return True if a subscription to `pattern` receives messages published to `subject`. Both must be valid."""
    if "*" not in pattern and ">" not in pattern:
        return pattern == subject
    return matches_tokens(pattern.split("."), subject.split("."))


def matches_tokens(pattern: Sequence[str], subject: Sequence[str]) -> bool:
    """Return what `matches` returns, for a pattern and a subject that are split into tokens."""
    if pattern[-1] == ">":
        if len(subject) < len(pattern):
            return False
        # zip() stops before the pattern's ">", which matches all further tokens.
        pattern = pattern[:-1]
    elif len(subject) != len(pattern):
        return False
    # A plain loop: all() with a generator takes twice as long.
    for ours, theirs in zip(pattern, subject, strict=False):  # noqa: SIM110
        if ours != theirs and ours != "*":
            return False
    return True


def overlaps(a: str, b: str) -> bool:
    """Return True if some subject matches both patterns. Both must be valid."""
    ours, theirs = a.split("."), b.split(".")
    for left, right in zip(ours, theirs, strict=False):
        # ">" needs at least one token, and the other side has one here.
        if left == ">" or right == ">":
            return True
        if left != right and left != "*" and right != "*":
            return False
    return len(ours) == len(theirs)


def covers(wider: str, pattern: str) -> bool:
    """Return True if every subject that matches `pattern` matches `wider`. Both must be valid."""
    return matches_tokens(wider.split("."), pattern.split(".")) and (wider[-1] == ">" or pattern[-1] != ">")


def reserved_namespace(subject: str, own_start: Sequence[str], *prefixes: str) -> str | None:
    """Return the reserved namespace that a subject is in: `$`, `_INBOX` or one of `prefixes`; None if it is in none.

    Servers answer publishes to such subjects, or clients take them for answers, with the permissions of the publisher.
    `own_start` are the literal tokens at the start of the configured subject: if these lead into the namespace, that is
    intended and the subject does not count as reserved.
    """
    tokens = subject.split(".")
    own = 0
    while own < min(len(tokens), len(own_start)) and tokens[own] == own_start[own]:
        own += 1
    if own == 0:
        if subject[0] == "$":
            return "$"
        if tokens[0] == INBOX_PREFIX:
            return INBOX_PREFIX
    for reserved in prefixes:
        prefix = reserved.split(".")
        if own < len(prefix) and tokens[: len(prefix)] == prefix:
            return reserved
    return None


def _checked_tokens(subject: str, what: str) -> list[str]:
    """Check what subjects and patterns have in common, and split into tokens. Raises SubjectError."""
    if not subject:
        raise SubjectError(f"{what} is empty: give it at least one token")
    tokens = subject.split(".")
    if "" in tokens:
        raise SubjectError(
            f"{what} {quoted(subject)} has an empty token: remove the dot at its start or end, or one of two in a row"
        )
    control = CONTROL.search(subject)
    if control is not None:
        name = "a space" if control[0] == " " else f"the control character {control[0]!r}"
        raise SubjectError(
            f"{what} {quoted(subject)} has {name} at position {control.start()}: remove it, or use '-' or '_' instead"
        )
    if not _encodable(subject):
        raise SubjectError(
            f"{what} {quoted(subject)} has an unpaired surrogate, which is not valid UTF-8: decode it from bytes "
            'with errors="surrogateescape"'
        )
    return tokens


def _encodable(subject: str) -> bool:
    # Surrogate escapes stand for bytes that are not valid UTF-8. Other surrogates can't be encoded.
    try:
        subject.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
