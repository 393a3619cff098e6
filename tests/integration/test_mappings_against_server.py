"""Mappings against a real nats-server: the same subjects out, the same destinations refused.

Each mapping has a first token of its own, because the server applies the first mapping that matches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
import trio

from router_trio.errors import MappingError
from router_trio.subjects.mapping import Mapping
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server, server_binary
from tests.support.servers import nats_server

WORDS = ("abcdefg", "a", "äöü-日本", "a-b--c-", "-x")
PAIRS = ("foo.bar", "fo.obar", "a-b.ä")
BY_RANK = ("partition", "splitFromLeft", "splitFromRight", "sliceFromLeft", "sliceFromRight", "right", "left")

_RANDOM = needs_server(2, 12, lacks="mapping function random")
_WHOLE = needs_server(2, 12, lacks="partition of a subject as a whole")
_BOUND = needs_server(2, 12, lacks="bound for the number of partitions")
_LEFT = needs_server(2, 15, lacks="mapping functions left and right")

# The part after the first token of the source, the destination, the part after the first token of the subjects.
CASES: Sequence[tuple[str, str, Sequence[str]]] = [
    # Wildcards by position
    (".*", "r.$1", WORDS),
    (".*", "r.{{wildcard(1)}}", WORDS),
    (".*", "r.{{ Wildcard ( 01 ) }}", WORDS),
    (".*.*", "r.$2.$1", PAIRS),
    (".*.*", "$2.{{wildcard(1)}}.$2.s", PAIRS),
    (".*.*", "r.{{wildcard(2)}}", PAIRS),
    (".x.*.y.*", "r.$2.$1", ("x.a.y.b",)),
    (".*", "r.$0.{{wildcard(-1)}}.{{wildcard(+1)}}", WORDS),
    (".*", "r.$-1.$+1.$01", WORDS),
    # Fixed subjects, and text that only looks like a function
    ("", "r.fixed", ("",)),
    (".*", "r.fixed", WORDS),
    (".*", "r.$.$x.$1x.$1-$1", ("a",)),
    (".*", "r.eu-{{wildcard(1)}}.{{wildcard(1)}}-eu", ("a",)),
    (".*", "r.{{}}.{{.}}.{wildcard(1)}", ("a",)),
    (".*", "r.{{split(1,.)}}", ("a",)),
    (".*", "r.a*.>b.**", ("a",)),
    (".a*b", "r.star", ("a*b",)),
    # The rest
    (".>", "r.>", ("a", "a.b", "a.b.c.d")),
    (".*.>", "r.$1.x.>", ("a.b", "a.b.c")),
    (".*.>", "r.>", ("a.b", "a.b.c")),
    (".x.>", ">", ("x.r", "x.r.s")),
    (".>", "r.$0.{{partition(7,0)}}.>", ("a", "a.b")),
    (".>", "r.{{partition(1000)}}.>", ("a", "a.b")),
    (".*.>", "r.{{split(1,-)}}.{{left(1,1)}}.>", ("a-b.c", "-a-b-.c.d")),
    # Partitions
    (".*", "r.{{partition(10,1)}}", WORDS),
    (".*.*", "r.{{partition(1000,1,2)}}", PAIRS),
    (".*.*", "r.{{Partition( 1000, 2 , 1 )}}", PAIRS),
    (".*.*", "r.{{partition(1000,1,1,2)}}.$1", PAIRS),
    (".*", "r.{{partition(1000)}}", WORDS),
    (".*", "r.{{partition(1000,0)}}.{{partition(1000,-5,1)}}", WORDS),
    (".*", "r.{{partition(1,1)}}.{{partition(0,1)}}", WORDS),
    (".*", "r.{{partition(-3,1)}}.{{partition(2147483647,1)}}", WORDS),
    (".*", "r.{{partition(-4294966296,1)}}", WORDS),
    # Cuts
    *(
        (".*", f"r.{{{{{function}(1,{size})}}}}", WORDS)
        for function in ("splitFromLeft", "splitFromRight", "sliceFromLeft", "sliceFromRight", "left", "right")
        for size in (1, 3, 7, 8)
    ),
    *(
        (".*", f"r.{{{{ {function} ( 1 , {size} ) }}}}", ("abcdefg", "a"))
        for function in ("SplitfromLeft", "splitFromright", "Slicefromleft", "SliceFromRight", "Left", "Right")
        for size in (0, -1)
    ),
    # Separators
    (".*", "r.{{split(1,-)}}", (*WORDS, "a-b", "a---b", "-a-b-", "a-b--", "a")),
    (".*", "r.{{split(1,--)}}", ("a-b--c", "--a", "a---b", "a----b")),
    (".*", "r.{{split(1,)}}", WORDS),
    (".*", "r.{{Split(1, ä)}}", ("xäy", "äxä", "öä")),
    (".*", "r.{{split(1,*)}}.{{split(1,))}}", ("a*b", "a)b", "*a")),
    (".*", "{{split(1,-)}}.s", ("a-b", "-a")),
    # Several functions in a token: one wins, by rank and not by position, and the rest is lost
    (".*.*", "r.{{ text {{wildcard(2)}} more }}", PAIRS),
    (".*.*", "r.{{split(1,-)}}{{wildcard(2)}}", PAIRS),
    (".*", "r.{{ {{split(1,-)}}{{random(1)}} }}", ("a-b", "a-)}}{{random(1b")),
    # In the other order the winner's arguments run into the other function, which is refused.
    *(
        (".*", f"r.{{{{{loser}(1,2)}}}}-{{{{{winner}(1,1)}}}}", ("abcdefghi",))
        for winner, loser in combinations(BY_RANK, 2)
    ),
]

ACCEPTED = [
    ("a.*", "b.$0"),
    ("a.*", "b.$-1"),
    ("a.*", "b.$99999999999999999999"),
    ("a", "b.$x"),
    ("a.*", "b.{{}}"),
    ("a.*", "b.{{wildcard(1)}}x"),
    ("a", "x{{wildcard(1)}}"),
    ("a.*", "{{x{{wildcard(1)}}y}}"),
    ("a.*", "b.{{split(1,.)}}"),
    ("a.*", "b.{{split(1,)}}"),
    pytest.param("a", "b.{{random(3)}}", marks=_RANDOM),
    pytest.param("a", "b.{{partition(3)}}", marks=_WHOLE),
    pytest.param("a", "b.{{partition(3,99)}}", marks=_WHOLE),
    ("a.*", "b.{{partition(0,1)}}"),
    ("a.*", "b.{{partition(-99999999999,1)}}"),
    pytest.param("a.*", "b.{{random(-99999999999)}}", marks=_RANDOM),
    pytest.param("a.*", "b.{{left(1,-2147483648)}}", marks=_LEFT),
    pytest.param("a.>", "b.{{partition(3,0)}}.{{random(3)}}.>", marks=_RANDOM),
    ("a*.*b", "b"),
    ("a.*.*.*", "b"),
    (">", ">"),
    ("*", "$1"),
]

REFUSED = [
    ("a.*", "b.$2"),
    ("a.*", "b.{{wildcard(2)}}"),
    ("a", "b.$1"),
    ("a", "b.$0"),
    ("a", "b.{{left(1,1)}}"),
    ("a.>", "b.{{wildcard(1)}}.>"),
    ("a.*", "b.{{partition(3,2)}}"),
    ("a.*", "b.{{foo(1)}}"),
    ("a.*", "b.{{ }}"),
    ("a.*", "b.{{WILDCARD(1)}}"),
    ("a.*", "b.{{splitfromleft2(1,1)}}"),
    ("a.*", "b.{{wildcard}}"),
    ("a.*", "b.{{wildcard(1) x}}"),
    ("a.*", "b.{{wildcard()}}"),
    ("a.*", "b.{{wildcard( )}}"),
    ("a.*", "b.{{wildcard(1,2)}}"),
    ("a.*", "b.{{wildcard(one)}}"),
    ("a.*", "b.{{wildcard(1_0)}}"),
    ("a.*", "b.{{wildcard(٣)}}"),
    ("a.*", "b.{{wildcard(9223372036854775808)}}"),
    ("a.*", "{{wildcard(1)}}{{wildcard(1)}}"),
    ("a.*", "{{wildcard(1)}}{{split(1,-)}}"),
    ("a.*", "{{left(1,2)}}-{{left(1,2)}}"),
    ("a.*", "b.{{partition()}}"),
    ("a.*", "b.{{partition(3,)}}"),
    ("a.*", "b.{{partition(x,1)}}"),
    pytest.param("a.*", "b.{{partition(2147483648,1)}}", marks=_BOUND),
    ("a.*", "b.{{random()}}"),
    ("a.*", "b.{{random(1,2)}}"),
    ("a.*", "b.{{random(2147483648)}}"),
    ("a.*", "b.{{left(1)}}"),
    ("a.*", "b.{{left(1,2,3)}}"),
    ("a.*", "b.{{left(1,2147483648)}}"),
    ("a.*", "b.{{left(1,-2147483649)}}"),
    ("a.*", "b.{{right(x,1)}}"),
    ("a.*", "b.{{sliceFromLeft(1,x)}}"),
    ("a.*", "b.{{split(1)}}"),
    ("a.*", "b.{{split(1,,)}}"),
    ("a.*", "b.{{split(1,- )}}"),
    ("a.*", "b.{{split(2,-)}}"),
    ("a.*", "b.*"),
    ("a.*", "b.>"),
    ("a.*.>", "b.$1"),
    ("a.*", "b.>.c"),
    ("a.*", "b..c"),
    ("a.*", "b."),
    ("a.*", ".b"),
    ("a.*", "b c"),
    ("a.*", "b.x\ty"),
    ("a..b", "c"),
    ("a.>.b", "c"),
    ("a b.*", "c"),
]


def mappings(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a server's configuration block. JSON strings are strings there too."""
    lines = [": ".join(json.dumps(text, ensure_ascii=False) for text in pair) for pair in pairs]
    return "\n".join(["mappings {", *lines, "}", ""])


async def delivered(tmp_path: Path, pairs: Sequence[tuple[str, str]], subjects: Sequence[str]) -> list[str | None]:
    """Return where a server with these mappings delivers a message to each of the subjects; None for nowhere."""
    async with nats_server(tmp_path, config=mappings(pairs), jetstream=False) as server, connect(server.url) as client:
        everything = await client.subscribe(">")
        await client.publish_many((subject, str(place).encode()) for place, subject in enumerate(subjects))
        await client.ping()
        found: list[str | None] = [None] * len(subjects)
        for message in everything.waiting():
            found[int(message.payload)] = message.subject
        return found


@_LEFT
async def test_apply_gives_the_subject_to_which_the_server_delivers(tmp_path: Path) -> None:
    compiled: list[Mapping] = []
    asked: list[tuple[Mapping, str]] = []
    for number, (source, destination, subjects) in enumerate(CASES):
        mapping = Mapping.compile(f"c{number}{source}", destination)
        compiled.append(mapping)
        asked += [(mapping, f"c{number}.{subject}".rstrip(".")) for subject in subjects]
    assert len(compiled) >= 40
    assert len(asked) >= 150

    pairs = [(mapping.source, mapping.destination) for mapping in compiled]
    server = await delivered(tmp_path, pairs, [subject for _, subject in asked])
    ours = [mapping.apply(subject) for mapping, subject in asked]
    differences = [
        f"{mapping.destination}: {subject} -> server {theirs!r}, router {our!r}"
        for (mapping, subject), theirs, our in zip(asked, server, ours, strict=True)
        if theirs != our
    ]
    assert differences == []


@_WHOLE
async def test_a_partition_without_wildcards_hashes_the_subject(tmp_path: Path) -> None:
    # The server has split the subject into tokens only if it looked at another mapping before, and the order of its
    # mappings is random: without tokens it hashes nothing, which is 2166136261 % 1000. The router always has them.
    destinations = ("r.{{partition(1000)}}", "r.{{partition(1000,1)}}", "r.{{partition(1000,9,0)}}")
    pairs = [(f"source{number}", destination) for number, destination in enumerate(destinations)]
    server = await delivered(tmp_path, pairs, [source for source, _ in pairs])
    ours = [Mapping.compile(source, destination).apply(source) for source, destination in pairs]
    assert "r.261" not in ours
    for theirs, our in zip(server, ours, strict=True):
        assert theirs in (our, "r.261")
    # Only the first mapping in the server's order is without tokens.
    assert sum(theirs == our for theirs, our in zip(server, ours, strict=True)) >= len(pairs) - 1


@_RANDOM
async def test_random_partitions_are_in_the_same_range(tmp_path: Path) -> None:
    pairs = [("n1.*", "{{random(3)}}"), ("n2", "{{random(-3)}}"), ("n3.*", "{{random(0)}}"), ("n4.*", "{{random(1)}}")]
    subjects = ["n1.a", "n2", "n3.a", "n4.a"]
    expected = [{"0", "1", "2"}, {"0", "1", "2"}, {"0"}, {"0"}]
    times = 100
    server = await delivered(tmp_path, pairs, subjects * times)
    compiled = [Mapping.compile(source, destination) for source, destination in pairs]
    for place, (mapping, subject) in enumerate(zip(compiled, subjects, strict=True)):
        assert set(server[place :: len(pairs)]) == expected[place]
        assert {mapping.apply(subject) for _ in range(times)} == expected[place]


async def test_a_mapping_that_the_server_drops_silently_is_an_error_here(tmp_path: Path) -> None:
    pairs = [("a.*", "r.{{split(1,-)}}"), ("b.*", "{{split(1,-)}}"), ("c.*", "{{split(1,-)}}.s")]
    subjects = [f"{name}.{token}" for name in "abc" for token in ("-", "--", "--x", "---x-y")]
    assert await delivered(tmp_path, pairs, subjects) == [None] * len(subjects)
    compiled = {source[0]: Mapping.compile(source, destination) for source, destination in pairs}
    for subject in subjects:
        with pytest.raises(MappingError, match="not a valid subject"):
            compiled[subject[0]].apply(subject)


async def server_accepts(tmp_path: Path, source: str, destination: str) -> bool:
    """Return whether the server would start with this mapping."""
    file = tmp_path / "nats.conf"
    file.write_text(mappings([(source, destination)]))
    command = [str(server_binary()), "-t", "-c", str(file)]
    finished = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    said = (finished.stdout + finished.stderr).decode()
    # The server must have judged the mapping, and not stumbled over the file.
    assert ("is valid" in said) if finished.returncode == 0 else ("mapping" in said or "not a valid subject" in said)
    return finished.returncode == 0


@pytest.mark.parametrize(("source", "destination"), ACCEPTED)
async def test_a_mapping_that_the_server_accepts_compiles(tmp_path: Path, source: str, destination: str) -> None:
    assert await server_accepts(tmp_path, source, destination)
    assert Mapping.compile(source, destination).destination == destination


@pytest.mark.parametrize(("source", "destination"), REFUSED)
async def test_a_mapping_that_the_server_refuses_does_not_compile(
    tmp_path: Path, source: str, destination: str
) -> None:
    assert not await server_accepts(tmp_path, source, destination)
    with pytest.raises(MappingError):
        Mapping.compile(source, destination)
