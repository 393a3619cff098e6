"""Partitions as the first token of subjects. The integration tests compare them with a real server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import MappingError
from router_trio.subjects.partitions import Partitioning, read_transforms

TOKENS = st.text(alphabet="ab-ä日", min_size=1, max_size=5)


def test_the_transform_adds_the_token_and_leaves_the_subject_as_it_is() -> None:
    found = Partitioning(16, (1,), ("orders.*.*", "returns.*.eu.>", "fixed.x")).transforms
    assert found[:2] == (
        ("orders.*.*", "{{partition(16,1)}}.orders.{{wildcard(1)}}.{{wildcard(2)}}"),
        ("returns.*.eu.>", "{{partition(16,1)}}.returns.{{wildcard(1)}}.eu.>"),
    )
    assert Partitioning(4).transforms == ((">", "{{partition(4)}}.>"),)


@given(TOKENS, TOKENS, TOKENS)
def test_the_key_alone_determines_the_partition(key: str, one: str, other: str) -> None:
    partitions = Partitioning(16, (1,), ("orders.*.*",))
    assert partitions.partition_of(f"orders.{key}.{one}") == partitions.partition_of(f"orders.{key}.{other}")
    assert 0 <= partitions.partition_of(f"orders.{key}.{one}") < 16


def test_every_partition_is_used() -> None:
    partitions = Partitioning(16, (), ("orders.*",))
    assert {partitions.partition_of(f"orders.{number}") for number in range(500)} == set(range(16))


def test_a_consumer_of_one_partition_has_its_filters() -> None:
    assert Partitioning(16, (), ("orders.*", "returns.>")).filters(3) == ("3.orders.*", "3.returns.>")
    assert Partitioning(16).filters(15) == ("15.>",)


def test_the_key_of_a_subject_is_made_of_the_tokens_that_determine_its_partition() -> None:
    assert Partitioning(4).key_of() is None
    key_of = Partitioning(4, (2, 1), ("orders.*.*.>",)).key_of()
    assert key_of is not None
    assert key_of(b"orders.7.eu.new.x") == b"eu.7"
    assert key_of(b"short") == b"short"
    key_of = Partitioning(4, (1,), ("orders.*", "eu.returns.*")).key_of()
    assert key_of is not None
    assert [key_of(one) for one in (b"orders.7", b"eu.returns.7", b"x.y")] == [b"7", b"7", b"x.y"]


def test_a_pattern_with_too_few_wildcards_is_refused() -> None:
    with pytest.raises(MappingError, match="wildcard index 2 out of range"):
        Partitioning(16, (2,), ("orders.*",))


def test_a_subject_that_is_not_read_has_no_partition() -> None:
    with pytest.raises(MappingError, match=r"matches none of the patterns that are partitioned: orders\.\*"):
        Partitioning(16, (1,), ("orders.*",)).partition_of("returns.7")


@pytest.mark.parametrize(
    "partitions",
    [
        Partitioning(16),
        Partitioning(4, (1,), ("orders.*.*",)),
        Partitioning(1, (2, 1), ("a.*.*.>", "b.*.*")),
        Partitioning(3, (), ("fixed.subject",)),
    ],
)
def test_partitions_of_a_stream_are_read_from_its_transforms(partitions: Partitioning) -> None:
    found = read_transforms(partitions.transforms)
    assert found == partitions
    assert found is not None
    assert partitions.difference(found) is None


@pytest.mark.parametrize(
    ("source", "destination", "found"),
    [
        ("", "{{Partition( 8 )}}.>", Partitioning(8)),
        ("orders.*", "{{partition(8,1)}}.orders.$1", Partitioning(8, (1,), ("orders.*",))),
        ("orders.*", "{{partition(8,1)}}.orders", None),
        ("a.*.*", "{{partition(8,1)}}.a.$2.$1", None),
        ("a.*", "b.{{partition(8,1)}}.$1", None),
        ("a.*", "{{wildcard(1)}}.a.$1", None),
        ("a.*", "{{partition(0,1)}}.a.$1", None),
        ("a.*", "{{nothing(1)}}.a.$1", None),
        ("a.*", "{{partition(x)}}.a.$1", None),
    ],
)
def test_other_transforms_make_no_partitions(source: str, destination: str, found: Partitioning | None) -> None:
    assert read_transforms([(source, destination)]) == found


def test_transforms_that_differ_make_no_partitions() -> None:
    assert read_transforms([]) is None
    assert read_transforms([("a.>", "{{partition(8)}}.a.>"), ("b.>", "{{partition(9)}}.b.>")]) is None


def test_a_difference_is_named() -> None:
    ours = Partitioning(16, (1,), ("a.*.*",))
    assert ours.difference(Partitioning(8, (1,), ("a.*.*",))) == "it has 8 partitions, the route 16 partitions"
    found = ours.difference(Partitioning(16, (), ("a.*.*",)))
    assert found == "its partitions are made of the entire subject, those of the route of wildcard 1"
    assert ours.difference(Partitioning(16, (1,), ("b.*.*",))) == "it partitions b.*.*, and the route reads a.*.*"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Partitioning(4, (1,), ("a.*.*",)), Partitioning(4, (1,), ("a.*.*",))),
        # The stream partitions more subjects than the route reads.
        (Partitioning(4, (1,), ("a.*.new",)), Partitioning(4, (1,), ("a.*.*",))),
        # What the stream partitions by is part of the key, or the same in all that the route reads.
        (Partitioning(4, (1, 2), ("a.*.*",)), Partitioning(4, (2,), ("a.*.*",))),
        (Partitioning(4, (1,), ("a.eu.*",)), Partitioning(4, (1,), ("a.*.*",))),
        (Partitioning(4, (), ("a.*.*",)), Partitioning(4, (1,), ("a.*.*",))),
        (Partitioning(4, (), ("a.*.*", "b.>")), Partitioning(4)),
    ],
)
def test_a_stream_whose_partitions_are_determined_by_the_key_keeps_the_order(
    wanted: Partitioning, found: Partitioning
) -> None:
    assert wanted.disorder(found) is None


@pytest.mark.parametrize(
    ("wanted", "found", "why"),
    [
        (
            Partitioning(4, (1,), ("a.*.*",)),
            Partitioning(1, (1,), ("a.*.*",)),
            "it has 1 partition, the route 4 partitions",
        ),
        (
            Partitioning(4, (1,), ("a.*.*",)),
            Partitioning(4),
            "its partitions are made of the entire subject of >, those of the route of wildcard 1",
        ),
        (
            Partitioning(4, (1,), ("a.*.*",)),
            Partitioning(4, (1, 2), ("a.*.*",)),
            "its partitions are made of wildcards 1, 2 of a.*.*, those of the route of wildcard 1",
        ),
        # The same number is another token.
        (
            Partitioning(4, (1,), ("a.eu.*.*",)),
            Partitioning(4, (3,), ("a.*.*.*",)),
            "its partitions are made of wildcard 3 of a.*.*.*, those of the route of wildcard 1",
        ),
        (
            Partitioning(4, (1,), ("b.*",)),
            Partitioning(4, (1,), ("a.*",)),
            "it partitions a.*, and the route reads b.*",
        ),
        (Partitioning(4, (), (">",)), Partitioning(4, (), ("a.*",)), "it partitions a.*, and the route reads >"),
    ],
)
def test_a_stream_with_other_partitions_is_described(wanted: Partitioning, found: Partitioning, why: str) -> None:
    assert wanted.disorder(found) == why
