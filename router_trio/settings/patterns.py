"""Check names, patterns of subjects and their placeholders, in every section that has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from router_trio.errors import Problem, SubjectError
from router_trio.errors.quotes import quoted
from router_trio.subjects.functions import FUNCTIONS
from router_trio.subjects.patterns import overlaps, validate_pattern, validate_subject

NOT_IN_NAMES = re.compile(r"[\x00-\x20\x7f.*>/\\]")
"""Characters that nats-server refuses in the name of a stream or a consumer."""

_WHOLE = re.compile(r"\$[+-]?[0-9]+|\{\{[^{}]*\}\}")
_NUMBERED = re.compile(r"\$[+-]?[0-9]|\$\{")
_CALL = re.compile(rf"\{{\s*(?:{'|'.join(FUNCTIONS)})\b|\b(?:{'|'.join(FUNCTIONS)})\(", re.IGNORECASE)


def check_name(path: str, name: str | None, refused: re.Pattern[str] = NOT_IN_NAMES) -> Iterator[Problem]:
    """Yield the problem of a name, by default that of a stream or a consumer; nothing if no name is given."""
    found = refused.search(name) if name else None
    if found:
        yield Problem(path, f"{name!r} contains {found[0]!r}, which NATS does not allow; remove it")


def check_own_subject(path: str, subject: str) -> Iterator[Problem]:
    """Yield each problem of a subject below which the router has its own. The path ends with its key."""
    try:
        validate_subject(subject, what=path.rpartition(".")[2])
    except SubjectError as error:
        yield Problem(path, str(error))
    if subject.startswith("$"):
        yield Problem(path, "begins with '$', which NATS reserves; choose another name")


def check_patterns(key: str, patterns: Sequence[str], where: Callable[[int], str], what: str) -> Iterator[Problem]:
    """Yield each problem of the patterns of one list, which must not overlap.

    `where` returns the path of a pattern by its number; `what` is the noun for one of them.
    """
    before: list[tuple[int, str]] = []
    for number, pattern in enumerate(patterns):
        try:
            validate_pattern(pattern, what=what)
        except SubjectError as error:
            yield Problem(where(number), str(error))
            continue
        found = find_overlap(pattern, before)
        before.append((number, pattern))
        if found is not None:
            text = f"{pattern!r} overlaps with {key}[{found}], {patterns[found]!r}, which nats-server refuses"
            yield Problem(where(number), f"{text}; keep one of them, or narrow one")


def check_source_pattern(path: str, pattern: str, what: str) -> Iterator[Problem]:
    """Yield the problem of a source's pattern, which must not have placeholders."""
    if (found := _placeholder_in(pattern)) is not None:
        yield _misplaced(path, found)
        return
    try:
        validate_pattern(pattern, what=what)
    except SubjectError as error:
        yield Problem(path, str(error))


def check_source_patterns(path: str, given: str | list[str] | None, key: str) -> Iterator[Problem]:
    """Yield each problem of the patterns of a source: one pattern, a list of them, or none."""
    patterns = [] if given is None else [given] if isinstance(given, str) else given

    def where(number: int) -> str:
        return path if isinstance(given, str) else f"{path}[{number}]"

    misplaced = [(where(number), found) for number, one in enumerate(patterns) if (found := _placeholder_in(one))]
    yield from (_misplaced(*one) for one in misplaced)
    if not misplaced:
        yield from check_patterns(key, patterns, where, key)


def find_overlap(pattern: str, others: Iterable[tuple[int, str]]) -> int | None:
    """Return the number of the first of `others` that overlaps with `pattern`."""
    return next((number for number, other in others if overlaps(pattern, other)), None)


def _placeholder_in(pattern: str) -> str | None:
    """Return the first placeholder in a source's pattern, where it has no meaning; None if there is none."""
    return next((token for token in pattern.split(".") if _WHOLE.fullmatch(token) or "{{" in token), None)


def _misplaced(path: str, placeholder: str) -> Problem:
    return Problem(
        path,
        f"{placeholder!r} is a placeholder for a token of the source, so it belongs in a destination; write '*' here, "
        "or exchange source and destination",
    )


# --- destinations ---


def misplaced_placeholder(destination: str) -> str | None:
    """Return what is wrong with a token that would be sent as it stands, though it was meant to be replaced; or None.

    A function is a whole token between dots. nats-server sends everything else as it stands, and of a token with text
    around a function it keeps the function alone: `x-$1.y` does neither of what its author wants.
    """
    for token in destination.split("."):
        if _WHOLE.fullmatch(token):
            continue
        if token.startswith("{{") and token.endswith("}}"):
            return (
                f"the token {quoted(token)} of {quoted(destination)} has more in it than one function, and all but the "
                "first would be lost; give each function a token of its own, between dots"
            )
        if "{{" in token and "}}" in token:
            return (
                f"the token {quoted(token)} of {quoted(destination)} has text around a function, so it would be sent "
                "as it stands; give the function a token of its own, between dots"
            )
        if "{{" in token or "}}" in token or _CALL.search(token):
            return (
                f"the token {quoted(token)} of {quoted(destination)} looks like a function but is not one, so it would "
                "be sent as it stands; write {{name(...)}} as a whole token, without dots in it"
            )
        if _NUMBERED.search(token):
            return (
                f"the token {quoted(token)} of {quoted(destination)} has text around a placeholder, so it would be "
                "sent as it stands; give $1 a token of its own, between dots"
            )
    return None
