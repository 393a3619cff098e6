"""When a file counts as changed: new, and found twice in a row."""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock

from router_trio.cli.reload.watching import Content, Watched, content_of, watch


def of(text: str | None) -> Content | None:
    return None if text is None else (("router.toml", text.encode()),)


def told(watched: Watched, *texts: str | None) -> list[bool]:
    return [watched.has_changed(of(text)) for text in texts]


def test_what_is_as_it_was_has_not_changed() -> None:
    assert told(Watched(of("a")), "a", "a", "a") == [False, False, False]


def test_what_is_new_has_changed_once_when_it_was_found_twice() -> None:
    assert told(Watched(of("a")), "b", "b", "b", "a", "a") == [False, True, False, False, True]


def test_what_is_half_written_or_away_for_a_moment_changes_nothing() -> None:
    assert told(Watched(of("a")), "", "half", None, "a", "a") == [False] * 5
    assert told(Watched(of("a")), None, None, None) == [False] * 3


def test_a_file_that_is_written_on_and_on_counts_when_it_is_over() -> None:
    assert told(Watched(of("a")), "b", "c", "d", "d") == [False, False, False, True]


def test_files_are_looked_at_together(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    assert content_of([one, other]) is None
    other.write_text("2")
    assert content_of([one, other]) == ((str(one), b"1"), (str(other), b"2"))


async def test_it_is_looked_at_each_second(autojump_clock: MockClock) -> None:
    looks: list[float] = []
    changes: list[int] = []

    def look() -> Content | None:
        looks.append(len(looks))
        return of("a" if len(looks) < 3 else "b")

    async with trio.open_nursery() as nursery:

        def changed() -> None:
            changes.append(len(looks))
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch, look, of("a"), changed)
    assert changes == [4]
