r"""Subjects and subscription patterns: what is valid, what matches what.

A subject is a row of tokens with dots between them. A pattern may also hold wildcards: `*` stands for exactly one
token, a last `>` for one or more. The rules are those of nats-server, with one addition: control characters and
unpaired surrogates are refused as well. The server relays control characters, but `\x0b` and `\x0c` break the
frame parser of other clients, so a router must not bring them into the world.

Guarantees: everything here is pure and synchronous, and raises nothing but `SubjectError`. `matches` and `overlaps`
expect valid arguments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from router_trio.errors import SubjectError
from router_trio.errors.quotes import quoted

CONTROL = re.compile("[\x00-\x20\x7f]")
"""Matches a character that no subject may hold: a space, NUL or another ASCII control character."""

WILDCARDS = frozenset({"*", ">"})

INBOX_PREFIX = "_INBOX"
"""Where clients of NATS have answers sent to, unless told otherwise."""


def is_valid_subject(subject: str) -> bool:
    """Return True if one can publish to `subject`. Gives False where `validate_subject` raises."""
    if (
        not subject
        or subject[0] == "."
        or subject[-1] == "."
        or ".." in subject
        or CONTROL.search(subject) is not None
        or not (subject.isascii() or _encodable(subject))
    ):
        return False
    # A wildcard character inside a longer token is an ordinary character: only whole tokens count.
    return not ("*" in subject or ">" in subject) or WILDCARDS.isdisjoint(subject.split("."))


def validate_subject(subject: str, *, what: str = "subject") -> None:
    """Check that one can publish to `subject`.

    `what` names the subject in the error's text, such as "reply subject". The length is not limited here: that is
    the server's `max_control_line`.

    Raises SubjectError: an empty token, a wildcard token, whitespace, a control character or text that has no UTF-8.
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
    """Check that one can subscribe to `pattern`. A plain subject is a pattern too.

    nats-server takes `a*` and `>a` as ordinary tokens. Here they are refused, because whoever writes one expects it
    to match more than itself.

    Raises SubjectError: an empty token, `*` or `>` inside a longer token, `>` before the last token, whitespace, a
    control character or text that has no UTF-8.
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
    """Return True if a subscription to `pattern` gets what is published to `subject`. Both must be valid."""
    if "*" not in pattern and ">" not in pattern:
        return pattern == subject
    return matches_tokens(pattern.split("."), subject.split("."))


def matches_tokens(pattern: Sequence[str], subject: Sequence[str]) -> bool:
    """`matches` for a pattern and a subject that are split into their tokens already."""
    if pattern[-1] == ">":
        if len(subject) < len(pattern):
            return False
        # zip() stops before the pattern's ">", which takes all that is left.
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
        # ">" needs one token at least, and here the other side has one.
        if left == ">" or right == ">":
            return True
        if left != right and left != "*" and right != "*":
            return False
    return len(ours) == len(theirs)


def reserved_namespace(subject: str, own_start: Sequence[str], *prefixes: str) -> str | None:
    """Return the reserved namespace that a subject is in: `$`, `_INBOX` or one of `prefixes`; None if it is in none.

    Subjects there are answered by servers, or taken for answers, with the rights of whoever publishes. `own_start` are
    the tokens at the start that the configuration itself wrote: if those lead there, that is meant.
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
    """Split a subject after the checks that subjects and patterns have in common."""
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
    # Bytes that are no UTF-8 travel as surrogate escapes; every other surrogate can't be put on the wire.
    try:
        subject.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
