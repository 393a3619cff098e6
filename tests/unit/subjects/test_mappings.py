"""Mappings: functions, refusals and their texts. The integration tests compare them with a real server."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import MappingError, RouterError
from router_trio.subjects.mapping import Mapping
from router_trio.subjects.patterns import is_valid_subject

WORDS = st.text(alphabet="ab-ä日", min_size=1, max_size=9)


def mapped(source: str, destination: str, subject: str) -> str:
    return Mapping.compile(source, destination).apply(subject)


@pytest.mark.parametrize(
    ("source", "destination", "subject", "expected"),
    [
        # Wildcards
        ("a.*.*", "b.$2.$1", "a.x.y", "b.y.x"),
        ("a.*.*", "b.{{wildcard(2)}}.{{wildcard(1)}}", "a.x.y", "b.y.x"),
        ("a.*", "b.{{ Wildcard ( 1 ) }}", "a.x", "b.x"),
        ("a.*", "b.$1.$1", "a.x", "b.x.x"),
        ("*.a.*", "$2.$1", "x.a.y", "y.x"),
        ("a.*", "$0.$1", "a.x", "a.x"),
        ("a.*.*", "b.$2", "a.x.y", "b.y"),
        ("a.*", "fixed.subject", "a.x", "fixed.subject"),
        ("a.b", "fixed.subject", "a.b", "fixed.subject"),
        # Full wildcards
        ("a.>", "b.>", "a.x.y", "b.x.y"),
        (">", "all.>", "x.y", "all.x.y"),
        (">", ">", "x.y", "x.y"),
        ("a.*.>", "b.$1.c.>", "a.x.y.z", "b.x.c.y.z"),
        ("a.*.>", "b.>", "a.x.y.z", "b.y.z"),
        # Literal tokens
        ("a.*", "eu-{{wildcard(1)}}", "a.x", "eu-{{wildcard(1)}}"),
        ("a.*", "eu-$1", "a.x", "eu-$1"),
        ("a.*", "$JS.$", "a.x", "$JS.$"),
        ("a.*", "{{}}", "a.x", "{{}}"),
        # Cuts
        ("a.*", "{{splitFromLeft(1,3)}}", "a.abcdefg", "abc.defg"),
        ("a.*", "{{splitFromRight(1,3)}}", "a.abcdefg", "abcd.efg"),
        ("a.*", "{{sliceFromLeft(1,3)}}", "a.abcdefg", "abc.def.g"),
        ("a.*", "{{sliceFromRight(1,3)}}", "a.abcdefg", "a.bcd.efg"),
        ("a.*", "{{sliceFromRight(1,3)}}", "a.abcdef", "abc.def"),
        ("a.*", "{{left(1,3)}}", "a.abcdefg", "abc"),
        ("a.*", "{{right(1,3)}}", "a.abcdefg", "efg"),
        ("a.*", "b.{{left(1,2)}}", "a.\udcff\udcfex", "b.\udcff\udcfe"),
        # Separators
        ("a.*", "{{split(1,-)}}", "a.x-y-z", "x.y.z"),
        ("a.*", "{{split(1,-)}}", "a.-x--y---z-", "x.y.z"),
        ("a.*", "{{split(1,--)}}", "a.x--y-z", "x.y-z"),
        ("a.*", "{{split(1,-)}}", "a.x", "x"),
        ("a.*", "{{split(1,)}}", "a.xäy", "x.ä.y"),
        # Buckets: FNV-1a's published test vectors, "" -> 0x811c9dc5, "a" -> 0xe40c292c, "foobar" -> 0xbf9cf968
        ("p.*", "{{partition(2147483647,1)}}", "p.a", str(0xE40C292C % 2147483647)),
        ("p.*", "{{partition(2147483647,1)}}", "p.foobar", str(0xBF9CF968 % 2147483647)),
        ("p.*.*", "{{partition(2147483647,1,2)}}", "p.foo.bar", str(0xBF9CF968 % 2147483647)),
        ("*", "{{partition(2147483647)}}", "foobar", str(0xBF9CF968 % 2147483647)),
        ("foobar", "{{partition(2147483647)}}", "foobar", str(0xBF9CF968 % 2147483647)),
        ("foobar", "{{partition(2147483647,9)}}", "foobar", str(0xBF9CF968 % 2147483647)),
        ("p.*", "{{partition(-1,1)}}", "p.a", str(0xE40C292C)),
        ("p.*", "{{partition(0,1)}}", "p.a", "0"),
        ("p.*", "{{partition(1,1)}}", "p.a", "0"),
        # Several functions in a token: one is used, the others are ignored
        ("a.*.*", "{{split(1,-)}}{{wildcard(2)}}", "a.x.y", "y"),
        ("a.*", "{{left(1,1)}}{{right(1,2)}}", "a.xyz", "yz"),
        ("a.*.*", "{{ text {{wildcard(2)}} more }}", "a.x.y", "y"),
    ],
)
def test_a_mapping_is_applied(source: str, destination: str, subject: str, expected: str) -> None:
    assert mapped(source, destination, subject) == expected


@pytest.mark.parametrize(
    "function", ["splitFromLeft", "splitFromRight", "sliceFromLeft", "sliceFromRight", "left", "right"]
)
@pytest.mark.parametrize("size", [-1, 0, 3, 4])
def test_a_cut_outside_of_the_token_leaves_it_unchanged(function: str, size: int) -> None:
    assert mapped("a.*", f"b.{{{{{function}(1,{size})}}}}", "a.abc") == "b.abc"


@pytest.mark.parametrize(
    ("source", "destination", "why"),
    [
        ("a.*", "b.$2", r"'\$2' has the wildcard index 2 out of range, the source 'a.\*' has 1 '\*'"),
        ("a.*", "b.{{wildcard(2)}}", "index 2 out of range"),
        ("a.>", "b.{{wildcard(1)}}.>", "index 1 out of range"),
        ("a.*", "b.{{partition(3,1,2)}}", "index 2 out of range"),
        ("a", "b.$1", "needs a wildcard, but the source 'a' has none"),
        ("a", "b.{{left(1,1)}}", "needs a wildcard"),
        ("a.*", "b.{{upper(1)}}", "is not a mapping function: use one of wildcard, partition, split"),
        ("a.*", "b.{{WILDCARD(1)}}", "is not a mapping function"),
        ("a.*", "b.{{wildcard}}", "is not a mapping function"),
        ("a.*", "b.{{wildcard()}}", r"too few arguments: write wildcard\(INDEX\)"),
        ("a.*", "b.{{wildcard(1,2)}}", "too many arguments"),
        ("a.*", "b.{{wildcard(x)}}", "invalid argument 'x': give a wildcard's number"),
        ("a.*", "b.{{wildcard(1_0)}}", "invalid argument"),
        ("a.*", "b.{{wildcard(9223372036854775808)}}", "invalid argument"),
        ("a.*", f"b.{{{{wildcard({'9' * 5000})}}}}", "invalid argument"),
        ("a.*.*", "{{wildcard(1)}}-{{wildcard(2)}}", "invalid argument"),
        ("a.*", "b.{{partition()}}", "invalid argument ''"),
        ("a.*", "b.{{partition(2147483648,1)}}", "an integer of at most 2147483647"),
        ("a.*", "b.{{left(1)}}", r"too few arguments: write left\(INDEX, NUMBER\)"),
        ("a.*", "b.{{left(1,2,3)}}", "too many arguments"),
        ("a.*", "b.{{left(1,x)}}", "invalid argument 'x': give the number"),
        ("a.*", "b.{{split(1)}}", r"too few arguments: write split\(INDEX, SEPARATOR\)"),
        ("a.*", "b.{{split(1,,)}}", "too many arguments"),
        ("a.*", "b.{{split(1,- )}}", "space in its separator"),
        ("a.*", "b.{{random()}}", "too few arguments"),
        ("a.*", "b.{{random(1,2)}}", "too many arguments"),
        ("a.*", "b.*", r"the wildcard '\*': write 'b\.\{\{wildcard\(1\)\}\}', which has the tokens"),
        ("a.*.*", "*.b.*", r"write '\{\{wildcard\(1\)\}\}\.b\.\{\{wildcard\(2\)\}\}', which has the tokens"),
        ("a", "b.*", r"the wildcard '\*': name the source's token .* as in \{\{wildcard\(1\)\}\}"),
        ("a.*.>", "b.$1", "must both end in '>', or neither"),
        ("a.*", "b.>", "must both end in '>', or neither"),
        ("a.*", "b..c", "destination 'b..c' has an empty token"),
        ("a..b", "b", "source 'a..b' of 'b' has an empty token"),
        ("a.>.b", "b", "source 'a.>.b' of 'b' has '>' before its last token"),
        ("a.*", "", "destination '' is empty"),
        ("", "b", "source '' of 'b' is empty"),
        ("a b", "c", "source 'a b' of 'c' contains whitespace"),
        ("a.*", "b c", "'b c' contains ' '"),
        ("a.*", "b\x0b", "contains '.x0b', but subjects have no whitespace or control characters"),
    ],
)
def test_an_invalid_mapping_is_refused_with_a_reason(source: str, destination: str, why: str) -> None:
    with pytest.raises(MappingError, match=why) as raised:
        Mapping.compile(source, destination)
    assert repr(destination) in str(raised.value)
    assert isinstance(raised.value, RouterError)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("source", ["in.>", "in.*.>", ">"])
def test_a_source_with_wildcards_may_map_to_one_literal_subject(source: str) -> None:
    mapping = Mapping.compile(source, "all.in.one")
    assert mapping.literal
    assert {mapping.apply(subject) for subject in ("in.a.b", "in.a.b.c")} == {"all.in.one"}
    with pytest.raises(MappingError, match="doesn't match"):
        Mapping.compile("in.>", "one").apply("other.a")


def test_the_first_matching_of_several_sources_is_used() -> None:
    mapping = Mapping.compile_each(["a.*.x", "b.*", "a.y.*"], "out.{{wildcard(1)}}")
    assert [mapping.apply(subject) for subject in ("a.1.x", "b.2", "a.y.3", "a.y.x")] == [
        "out.1",
        "out.2",
        "out.3",
        "out.y",
    ]
    with pytest.raises(MappingError, match=r"'b\.2\.x' doesn't match the mapping's source 'a\.\*\.x, b\.\*, a\.y\.\*'"):
        mapping.apply("b.2.x")
    with pytest.raises(MappingError, match="needs a wildcard, but the source 'b' has none"):
        Mapping.compile_each(["a.*", "b"], "out.{{wildcard(1)}}")
    assert Mapping.compile_each(["a.*"], "out.$1") == Mapping.compile("a.*", "out.$1")


@pytest.mark.parametrize("subject", ["a", "b.x", "a.x.y", "", "a.*.x"])
def test_apply_refuses_a_subject_that_does_not_match(subject: str) -> None:
    for destination in ("b.$1", "literal"):
        with pytest.raises(MappingError, match=r"doesn't match the mapping's source 'a\.\*'"):
            Mapping.compile("a.*", destination).apply(subject)


@pytest.mark.parametrize("token", ["-", "--", "--x", "*-x", "x->"])
def test_apply_refuses_a_result_that_is_not_a_valid_subject(token: str) -> None:
    with pytest.raises(MappingError, match=r"which is not a valid subject: change the destination"):
        mapped("a.*", "b.{{split(1,-)}}", f"a.{token}")


def test_apply_refuses_a_subject_that_can_not_be_encoded() -> None:
    for destination in ("{{partition(3,1)}}", "{{left(1,1)}}"):
        with pytest.raises(MappingError, match="encoded as UTF-8"):
            mapped("a.*", destination, "a.\ud800x")


def test_random_takes_its_numbers_from_the_given_function() -> None:
    asked: list[int] = []

    def last(count: int) -> int:
        asked.append(count)
        return count - 1

    mapping = Mapping.compile("a.*", "b.{{random(5)}}.{{random(-3)}}.{{random(0)}}", random=last)
    assert mapping.apply("a.x") == "b.4.2.0"
    assert asked == [5, 3]
    assert not mapping.deterministic
    assert not mapping.literal


def test_random_reaches_all_numbers_below_its_limit() -> None:
    mapping = Mapping.compile("a", "{{random(3)}}")
    assert {mapping.apply("a") for _ in range(200)} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("source", "destination", "literal"),
    [
        ("a.*", "b.c", True),
        ("a", "b", True),
        ("a.*", "b-$1", True),
        ("a.*", "b.$1", False),
        ("a.>", "b.>", False),
        ("a", "{{partition(3)}}", False),
    ],
)
def test_literal_means_no_placeholder(source: str, destination: str, literal: bool) -> None:
    mapping = Mapping.compile(source, destination)
    assert mapping.literal is literal
    assert mapping.deterministic


def test_a_mapping_is_frozen_and_compares_by_its_text() -> None:
    mapping = Mapping.compile("a.*", "b.$1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        mapping.source = "c"  # type: ignore[misc]
    assert mapping == Mapping.compile("a.*", "b.$1")
    assert hash(mapping) == hash(Mapping.compile("a.*", "b.$1"))
    assert mapping != Mapping.compile("a.*", "c.$1")
    assert not hasattr(mapping, "__dict__")


# --- properties ------------------------------------------------------------------------------------------------------


@given(WORDS, WORDS)
def test_two_swaps_give_the_subject_back(first: str, second: str) -> None:
    swap = Mapping.compile("*.*", "$2.$1")
    assert swap.apply(swap.apply(f"{first}.{second}")) == f"{first}.{second}"


@given(WORDS, st.integers(-1, 12))
def test_cuts_count_bytes_and_lose_nothing(word: str, size: int) -> None:
    octets = word.encode()
    for function in ("splitFromLeft", "splitFromRight", "sliceFromLeft", "sliceFromRight"):
        result = mapped("*", f"{{{{{function}(1,{size})}}}}", word).encode("utf-8", "surrogateescape")
        assert result.replace(b".", b"") == octets
        if 0 < size < len(octets):
            tokens = result.split(b".")
            whole = tokens[-1] if "Right" in function else tokens[0]
            assert len(whole) == size
            if "slice" in function:
                assert len(tokens) == -(-len(octets) // size)
                assert all(0 < len(token) <= size for token in tokens)
            else:
                assert len(tokens) == 2
        else:
            assert result == octets


@given(WORDS, st.integers(1, 12))
def test_left_and_right_return_the_ends_of_a_token(word: str, size: int) -> None:
    octets = word.encode()
    left, right = (mapped("*", f"{{{{{side}(1,{size})}}}}", word) for side in ("left", "right"))
    assert left.encode("utf-8", "surrogateescape") == octets[:size]
    assert right.encode("utf-8", "surrogateescape") == octets[-size:]


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=5), st.integers(1, 3))
def test_split_undoes_join_however_many_separators(parts: list[str], times: int) -> None:
    assert mapped("*", "{{split(1,-)}}", ("-" * times).join(parts)) == ".".join(parts)


@given(WORDS, WORDS, st.integers(1, 1000))
def test_a_partition_is_in_range_and_stable(first: str, second: str, count: int) -> None:
    mapping = Mapping.compile("*.*", f"{{{{partition({count},1,2)}}}}")
    result = mapping.apply(f"{first}.{second}")
    assert 0 <= int(result) < count
    assert mapping.apply(f"{first}.{second}") == result


@given(st.text(alphabet="{}$()1,-wildcrpton >*.\t", max_size=30))
def test_any_mapping_gives_a_valid_subject_or_a_mapping_error(destination: str) -> None:
    try:
        result = Mapping.compile("a.*.*", destination).apply("a.x.y")
    except MappingError:
        return
    assert is_valid_subject(result)
