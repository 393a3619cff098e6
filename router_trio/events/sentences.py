"""Parts of the sentences of events: counts with their noun, lists of names, and how a message is named."""

from __future__ import annotations

from router_trio.errors import reasons
from router_trio.errors.quotes import excerpt

NAMES = 5
"""Maximum number of names that a sentence lists. The fields of the line have all of them."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 attempt`, `2 attempts`. `plural` is the noun of several, if irregular."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(names: tuple[str, ...], *, most: int | None = None) -> str:
    """Return the first names as text, and how many more there are: at least as many, if `names` has the `most`."""
    more = len(names) - NAMES
    text = ", ".join(names[:NAMES]) or "nothing"
    return f"{text} and {'at least ' if len(names) == most else ''}{more} more" if more > 0 else text


def listed_sentences(sentences: tuple[str, ...], count: int) -> str:
    """Return the first of `count` sentences as text, and how many more there are."""
    more = count - NAMES
    return "; ".join((*sentences[:NAMES], *([f"and {more} more"] if more > 0 else [])))


def by_route(route: str | None, text: str) -> str:
    """Return a sentence with the route that it is about, if one is known."""
    return f"{text[:1].upper()}{text[1:]}" if route is None else f"Route {route}: {text}"


def to_subject(subject: str | None) -> str:
    """Return where a message or an ack goes, as the end of a phrase; nothing if that is not known."""
    return "" if subject is None else f" to {excerpt(subject)}"


def named_message(subject: str | None, stream: str | None, sequence: int | None) -> str:
    """Return how a sentence names a message, by as much as is known of it."""
    number = "a message" if stream is None or sequence is None else f"message {sequence} of stream {stream}"
    return number if subject is None else f"{number} on {excerpt(subject)}"


def raised_by(error_type: str | None, place: str | None) -> str:
    """Return type and place of an error, as the end of a phrase; nothing if neither is known."""
    kind = "" if error_type is None else f" ({error_type})"
    return kind if place is None else f"{kind} at {place}"


def with_advice(reason: str) -> str:
    """Return what to do about a refusal, as the end of a sentence; nothing if the words of the server contain it."""
    advice = reasons.advice(reason)
    return f"; {advice}" if advice else ""
