"""When a file counts as changed: its content is new, and the same twice in a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from router_trio.cli.run.reloading import ChangeDetector, Content, content_of, watch_files


def of(text: str | None) -> Content | None:
    return None if text is None else (("router.toml", text.encode()),)


def seen(detector: ChangeDetector, *texts: str | None) -> list[bool]:
    return [detector.has_changed(of(text)) for text in texts]


A, B = "a = 1", "a = 2"
TWO = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "one"
limit = { rate = "5/s" }
[[routes]]
name = "other"
"""
HALF = TWO[: TWO.rindex("[[routes]]")]


def test_unchanged_content_is_no_change() -> None:
    assert seen(ChangeDetector(of(A)), A, A, A) == [False, False, False]


def test_new_content_counts_once_after_it_was_found_twice() -> None:
    assert seen(ChangeDetector(of(A)), B, B, B, A, A) == [False, True, False, False, True]


def test_a_half_written_or_briefly_missing_file_is_no_change() -> None:
    assert seen(ChangeDetector(of(A)), "", "half", None, A, A) == [False] * 5
    assert seen(ChangeDetector(of(A)), None, None, None) == [False] * 3


def test_a_file_under_constant_writing_changes_when_the_writing_stops() -> None:
    assert seen(ChangeDetector(of("")), "b = 1", "b = 1\nc = 1", "b = 1\nc = 1\nd = 1", "b = 1\nc = 1\nd = 1")[-2:] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    "half",
    [
        HALF,
        HALF.replace("limit", "# limit"),
        TWO.replace('servers = ["nats://127.0.0.1:4222"]', "servers = []"),
        TWO[: TWO.index("[[routes]]")],
        TWO[:-3],
        "",
        None,
    ],
    ids=["a route", "a key", "an item", "all routes", "in the middle of a line", "empty", "away"],
)
def test_a_writer_that_pauses_for_three_seconds_is_waited_for(half: str | None) -> None:
    new = TWO.replace("5/s", "6/s")
    assert seen(ChangeDetector(of(TWO)), half, half, half, half, new, new, new) == [False] * 5 + [True, False]


@pytest.mark.parametrize("less", [HALF, TWO[:-3], "", None], ids=["a route", "no TOML", "empty", "away"])
def test_content_that_stays_shorter_has_changed(less: str | None) -> None:
    assert seen(ChangeDetector(of(TWO)), *[less] * 8) == [False] * 5 + [True, False, False]


def test_routes_that_move_to_another_file_or_place_are_not_missing() -> None:
    detector = ChangeDetector((("a", TWO.encode()),))
    moved = (("a", HALF.encode()), ("b", b'[[routes]]\nname = "other"'))
    assert [detector.has_changed(moved), detector.has_changed(moved)] == [False, True]


def test_the_files_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("b")
    (tmp_path / "a.toml").write_text("a")
    (tmp_path / "notes.txt").write_text("n")
    assert content_of([tmp_path]) == ((str(tmp_path / "a.toml"), b"a"), (str(tmp_path / "b.toml"), b"b"))
    (tmp_path / "c.toml").write_text("c")
    assert len(content_of([tmp_path]) or ()) == 3


def test_files_are_compared_together(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    assert content_of([one, other]) is None
    other.write_text("2")
    assert content_of([one, other]) == ((str(one), b"1"), (str(other), b"2"))


async def test_files_are_read_once_a_second(autojump_clock: MockClock) -> None:
    looks: list[float] = []
    changes: list[int] = []

    def look() -> Content | None:
        looks.append(len(looks))
        return of(A if len(looks) < 3 else B)

    async with trio.open_nursery() as nursery:

        def changed() -> None:
            changes.append(len(looks))
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch_files, look, of(A), changed)
    assert changes == [4]
