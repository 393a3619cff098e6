"""Whether a stream takes what a route reads from it and sends, according to the server's description of the stream."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import pytest

from router_trio.protocol.stream_config import StreamSubjects
from router_trio.settings.checks.loops import feeds_itself_through

TO_B = ("a.*", "b.{{wildcard(1)}}")
"""A message published to `a` is stored under `b`."""


@pytest.mark.parametrize(
    ("taken", "filters", "destination", "by"),
    [
        (("s.>",), (), "s.x", "s.>"),
        (("r", "s.>"), (), "s.x", "s.>"),
        (("s.>",), (), "t.x", None),
        (("s.>",), ("s.in.*",), "s.out", None),
        (("s.>",), ("s.in.*", "s.out"), "s.out", "s.>"),
        (("s.>",), ("s.*.in",), "s.{{wildcard(1)}}.in", "s.>"),
        (("s.>",), ("s.*.in",), "s.{{wildcard(1)}}.out", None),
        ((), (), "s.x", None),  # a mirror
    ],
)
def test_a_stream_that_takes_what_a_route_sends_feeds_it_unless_the_filter_excludes_it(
    taken: tuple[str, ...], filters: Sequence[str], destination: str, by: str | None
) -> None:
    assert feeds_itself_through(StreamSubjects(taken), filters, destination) == by


@pytest.mark.parametrize(
    ("taken", "filters", "destination", "by"),
    [
        (("a.*",), (), "a.x", "a.*"),  # without a filter every subject is read
        (("a.*",), (), "b.x", None),  # messages are stored as b, not taken as b
        (("a.*",), ("b.*",), "a.x", "a.*"),
        (("a.*",), ("b.y",), "a.x", None),
        (("a.*", "b.*"), ("a.*",), "a.x", None),
        (("a.>",), ("a.*.*",), "a.x.y", "a.>"),  # the mapping does not match this subject
        (("a.>",), ("a.*.*",), "a.x", None),
        (("a.*",), (), ">", None),  # all subjects that it holds begin with b
        (("a.*", "c"), (), ">", "c"),
    ],
)
def test_the_mapping_of_a_stream_is_taken_into_account(
    taken: tuple[str, ...], filters: Sequence[str], destination: str, by: str | None
) -> None:
    assert feeds_itself_through(StreamSubjects(taken, TO_B), filters, destination) == by


@pytest.mark.slow
def test_thousands_of_subjects_are_compared_quickly() -> None:
    stream = StreamSubjects(tuple(f"s.{number}.*" for number in range(10_000)))
    began = perf_counter()
    assert feeds_itself_through(stream, (), "copy.>") is None
    assert feeds_itself_through(stream, (), "s.>") is None
    assert feeds_itself_through(stream, [f"s.{number}.in" for number in range(1_000)], "s.7.out") is None
    assert feeds_itself_through(stream, (), "s.7.out") == "s.7.*"
    # Comparing each with each would take minutes.
    assert perf_counter() - began < 10


def test_any_subjects_that_a_server_reports_can_be_compared() -> None:
    long = "s." + "x." * 3000 + "*"
    destination = "{{split(1,-)}}.x"
    for stream in (StreamSubjects((long,)), StreamSubjects(("s.*",), ("s.*", long)), StreamSubjects(("..", "", ">.>"))):
        for filters, to in (((), "s.>"), ((), "s.x"), (("s.*",), destination), (("*.>",), "s.x.>"), (("s.>",), "t")):
            assert feeds_itself_through(stream, filters, to) in (None, *stream.taken)


def test_a_stream_with_sources_may_hold_any_subject() -> None:
    assert feeds_itself_through(StreamSubjects(("copy.a",)), (), "copy.>") is None
    assert feeds_itself_through(StreamSubjects(("copy.a",), has_others=True), (), "copy.>") == "copy.a"
    assert feeds_itself_through(StreamSubjects((), has_others=True), (), "copy.>") is None
