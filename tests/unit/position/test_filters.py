"""Filters of a consumer of the source, as filters of a consumer of the copy."""

from __future__ import annotations

from itertools import product

import pytest

from router_trio.errors import MappingError
from router_trio.position.filters import UnmappableError, intersection, map_filters
from router_trio.subjects.mapping import Mapping
from router_trio.subjects.patterns import matches


@pytest.mark.parametrize(
    ("filters", "sources", "template", "mapped"),
    [
        ([], ["orders.*"], "copies.{{wildcard(1)}}", ["copies.*"]),
        (["orders.>"], ["orders.*"], "copies.{{wildcard(1)}}", ["copies.*"]),
        (["orders.eu"], ["orders.*"], "copies.{{wildcard(1)}}", ["copies.eu"]),
        (["orders.eu", "orders.us"], ["orders.*"], "copies.$1", ["copies.eu", "copies.us"]),
        (["orders.*.7"], ["orders.*.*"], "c.{{wildcard(2)}}.{{wildcard(1)}}", ["c.7.*"]),
        (["orders.eu.>"], ["orders.>"], "copies.>", ["copies.eu.>"]),
        (["orders.eu"], [">"], "copies.>", ["copies.orders.eu"]),
        (["a.*"], ["a.*", "b.*"], "{{wildcard(1)}}.a", None),
        (["a.*", "b.*"], ["a.*", "b.*"], "c.{{wildcard(1)}}", ["c.*"]),
        (["orders.eu"], ["orders.*"], "copies", None),
        (["orders.eu.*"], ["orders.*.*"], "copies.{{partition(3,1)}}.{{wildcard(2)}}", None),
        (["orders.*.eu"], ["orders.*.*"], "c.{{partition(3,1)}}.{{wildcard(2)}}", ["c.*.eu"]),
        (["orders.*.eu"], ["orders.*.*"], "c.{{split(1,-)}}.{{wildcard(2)}}", None),
        (["other.*"], ["orders.*"], "copies.{{wildcard(1)}}", []),
    ],
)
def test_a_filter_of_the_copy(filters: list[str], sources: list[str], template: str, mapped: list[str] | None) -> None:
    if mapped is None:
        with pytest.raises(UnmappableError):
            map_filters(filters, sources, template)
    else:
        assert map_filters(filters, sources, template) == mapped


def test_a_mapped_filter_matches_the_copies_of_its_messages_and_no_others() -> None:
    subjects = [".".join(one) for n in (1, 2, 3) for one in product("abc", repeat=n)]
    patterns = [">", "a.*", "*.b", "a.>", "a.b", "*.*.c", "*.b.*", "b.*.a"]
    templates = ["x.{{wildcard(1)}}", "x.{{wildcard(2)}}.{{wildcard(1)}}", "x.>", "x", "{{wildcard(1)}}.y"]
    answered = 0
    for source, template in product([["a.*"], ["*.*"], ["a.>"], ["*.*.*"], ["a.*", "b.*"]], templates):
        try:
            mapping = Mapping.compile_each(source, template)
        except MappingError:
            continue
        copied = [(one, mapping.apply(one)) for one in subjects if any(matches(pattern, one) for pattern in source)]
        for wanted in patterns:
            try:
                mapped = map_filters([wanted], source, template)
            except UnmappableError:
                continue
            answered += 1
            for subject, copy in copied:
                assert any(matches(one, copy) for one in mapped) == matches(wanted, subject), (source, template, wanted)
    assert answered > 40


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("a.*", "*.b", "a.b"),
        ("a.>", "a.b.c", "a.b.c"),
        ("a.*", "a.>", "a.*"),
        (">", "a.>", "a.>"),
        ("a.>", "a.b.>", "a.b.>"),
        ("a.*", "b.*", None),
        ("a", "a.>", None),
    ],
)
def test_the_intersection_of_two_patterns(one: str, other: str, both: str | None) -> None:
    assert intersection(one, other) == both
    assert intersection(other, one) == both
