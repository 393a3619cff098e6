"""Which file a key of a configuration came from, when several files make one: for errors that name the right place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from router_trio.errors import Problem
from router_trio.settings.problems import key_path

_ENTRY = re.compile(r"(\w+)\[([0-9]+)\]")


@dataclass(slots=True)
class Places:
    """The files of a configuration, and what each of them gave.

    `keys` has the file of each key and table that was given first there; `entries` that of each entry of a list of
    sections, and its number there. A configuration of one file that was named needs no places: it has no `files`.
    """

    files: Sequence[str] = ()
    keys: dict[str, str] = field(default_factory=dict)
    entries: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def located(self, problem: Problem) -> Problem:
        """Return the problem with its file, and with the path of the key there."""
        if not self.files:
            return problem
        file, path = self._place(problem.path)
        message = problem.message
        if problem.other:
            other_file, other = self._place(problem.other)
            message = message.replace(problem.other, other if other_file == file else f"{other} of {other_file}", 1)
        return replace(problem, path=path, message=message, source=file)

    def _place(self, path: str) -> tuple[str, str]:
        entry = _ENTRY.match(path)
        if entry is not None and entry[1] in self.entries:
            known, number = self.entries[entry[1]], int(entry[2])
            if number < len(known):
                file, there = known[number]
                return file, f"{entry[1]}[{there}]{path[entry.end() :]}"
        above = path
        while above and above not in self.keys:
            above = re.sub(r"(^|\.|\[)[^.\[]*$", "", above)
        return self.keys.get(above, self.files[0]), path


def merge(
    data: dict[str, Any], more: dict[str, Any], file: str, places: Places, lists: Sequence[str]
) -> Iterator[Problem]:
    """Add what a file has to what those before it have: tables grow, and the lists that are named are joined.

    Yields a problem for each key that was given before, which keeps its value.
    """
    yield from _merge(data, more, (), file, places, lists)


def _merge(
    data: dict[str, Any], more: dict[str, Any], at: tuple[str, ...], file: str, places: Places, lists: Sequence[str]
) -> Iterator[Problem]:
    for key, value in more.items():
        path = key_path((*at, key))
        before = data.get(key)
        joined = not at and key in lists and isinstance(value, list)
        if joined and (key not in data or isinstance(before, list)):
            places.entries.setdefault(key, []).extend((file, number) for number in range(len(value)))
            data[key] = [*(before or ()), *value]
        elif isinstance(value, dict) and (key not in data or isinstance(before, dict)):
            places.keys.setdefault(path, file)
            yield from _merge(data.setdefault(key, {}), value, (*at, key), file, places, lists)
        elif key in data:
            first = places.keys.get(path) or places.files[0]
            told = f"is given in {first} already; keep it in one of them"
            yield Problem(path, told, source=file)
        else:
            places.keys[path] = file
            data[key] = value
