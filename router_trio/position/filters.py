"""Map the filter subjects of a consumer of the source to the subjects of the copies. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from router_trio.subjects.functions import KEY_AT, parse, positions
from router_trio.subjects.mapping import Mapping
from router_trio.subjects.patterns import covers, overlaps


class UnmappableError(Exception):
    """No filter selects exactly the copies of the messages that a filter selects. The text gives the reason."""


def map_filters(filters: Sequence[str], sources: Sequence[str], template: str) -> list[str]:
    """Return patterns that match exactly the copies of messages that match one of `filters`.

    `filters` are those of a consumer, none for all messages. `sources` and `template` are the mapping of a route.
    Raises `UnmappableError`.
    """
    mapped: list[str] = []
    wanted = filters or (">",)
    partial = [source for source in sources if not any(covers(one, source) for one in wanted)]
    for one in wanted:
        mapped += _map_filter(one, sources, partial, template)
    return _without_covered(mapped)


def _map_filter(wanted: str, sources: Sequence[str], partial: Sequence[str], template: str) -> list[str]:
    """Map one filter. `partial` are the sources some of whose messages no filter matches."""
    mapped = []
    for source in sources:
        common = intersection(wanted, source)
        if common is not None:
            mapped.append(_map_pattern(wanted, common, source, template))
    for source in partial:
        # Its other messages must not have copies that the mapped filter matches.
        all_copies = Mapping.compile_each([source], template).pattern if source != ">" else None
        own = intersection(wanted, source)
        for pattern in mapped:
            from_here = own is not None and _map_pattern(wanted, own, source, template) == pattern
            if not from_here and all_copies is not None and overlaps(pattern, all_copies):
                raise UnmappableError(f"messages of {source} that {wanted} does not match have copies in {pattern} too")
    return mapped


def _map_pattern(wanted: str, common: str, source: str, template: str) -> str:
    """Return the pattern of the copies of the messages of `source` that match `common`."""
    tokens, source_tokens = common.split("."), source.split(".")
    wildcards = [place for place, token in enumerate(source_tokens) if token == "*"]
    narrowed = {place for place in wildcards if tokens[place] != "*"}
    open_end = source_tokens[-1] == ">"
    rest = tokens[len(source_tokens) - 1 :] if open_end else []
    rest_narrowed = open_end and rest != [">"]
    shape: list[str] = []
    for token in template.split("."):
        call = parse(token)
        if token == ">":
            shape += rest
            rest_narrowed = False
        elif call is None:
            shape.append(token)
        elif call.name == "key":
            shape += tokens[KEY_AT:]
            narrowed.clear()
            rest_narrowed = False
        elif call.name == "wildcard":
            (place,) = positions(call, wildcards, source, not wildcards and not open_end)
            shape.append(tokens[place])
            narrowed.discard(place)
        elif call.name.startswith(("split", "slice")):
            shape.append(">")  # any number of tokens, so what follows them can't be selected
            break
        else:
            shape.append("*")
    if narrowed or rest_narrowed:
        raise UnmappableError(f"the subjects of the copies, {template}, do not show which of them match {wanted}")
    return ".".join(shape)


def intersection(one: str, other: str) -> str | None:
    """Return the pattern that matches what both patterns match; None if they have no subject in common."""
    ours, theirs = one.split("."), other.split(".")
    if not overlaps(one, other):
        return None
    tokens = []
    for place in range(max(len(ours), len(theirs))):
        left = ours[place] if place < len(ours) else ">"
        right = theirs[place] if place < len(theirs) else ">"
        if left == ">" and right == ">":
            tokens.append(">")
        else:
            tokens.append(right if left in ("*", ">") and right != ">" else left)
    return ".".join(tokens)


def _without_covered(patterns: Iterable[str]) -> list[str]:
    """Return the patterns without those that another one covers: a consumer's filters must not overlap."""
    found = list(dict.fromkeys(patterns))
    return [one for one in found if not any(other != one and covers(other, one) for other in found)]
