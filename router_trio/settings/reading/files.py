"""Track the files of a configuration, and the file of each key, so that errors name the right place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from router_trio.errors import Problem
from router_trio.settings.problems import key_path
from router_trio.settings.reading.places import Places

_ENTRY = re.compile(r"(\w+)\[([0-9]+)\]")


@dataclass(slots=True)
class Files:
    """The files of a configuration and their keys.

    `places` has each file by its name. With `several` files errors name the file. `keys` has for each key and table the
    file that gave it first; `entries` has for each entry of a list of sections its file and its number there.
    """

    places: dict[str, Places]
    several: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    entries: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def forget_values(self) -> None:
        """Forget what is not needed to locate problems: see `Places.forget_values`."""
        for places in self.places.values():
            places.forget_values()

    def located(self, problem: Problem, variable: str | None = None) -> Problem:
        """Return a problem with the place of its key: the file if there are several, and the path of the key there.

        `variable` is the environment variable that set the key, if any: then no line is given.
        """
        first = next(iter(self.places), "")
        file, path = (problem.source, problem.path) if problem.source else self._place(problem.path, first)
        found = self.places.get(file)
        place = "" if found is None else found.place_of(path, with_line=variable is None)
        line = 0 if found is None or variable is not None else found.line_of(path)
        if variable is not None:
            place = ", ".join(filter(None, (f"set by {variable}", place)))
        if not self.several:
            return replace(problem, place=place, line=line)
        message = problem.message
        if problem.other:
            other_file, other = self._place(problem.other, first)
            message = message.replace(problem.other, other if other_file == file else f"{other} of {other_file}", 1)
        return replace(problem, path=path, message=message, source=file, place=place, line=line)

    def _place(self, path: str, first: str) -> tuple[str, str]:
        """Return the file of a key, and its path there."""
        entry = _ENTRY.match(path)
        if entry is not None and entry[1] in self.entries:
            known, number = self.entries[entry[1]], int(entry[2])
            if number < len(known):
                file, there = known[number]
                return file, f"{entry[1]}[{there}]{path[entry.end() :]}"
        above = path
        while above and above not in self.keys:
            above = re.sub(r"(^|\.|\[)[^.\[]*$", "", above)
        return self.keys.get(above, first), path


def merge(
    data: dict[str, Any], more: dict[str, Any], file: str, files: Files, lists: Sequence[str]
) -> Iterator[Problem]:
    """Merge the data of a file into that of the files before it: tables are merged, `lists` are joined.

    Yields a problem for each key that was given before, which keeps its value.
    """
    yield from _merge(data, more, (), file, files, lists)


def _merge(
    data: dict[str, Any], more: dict[str, Any], at: tuple[str, ...], file: str, files: Files, lists: Sequence[str]
) -> Iterator[Problem]:
    for key, value in more.items():
        path = key_path((*at, key))
        before = data.get(key)
        joined = not at and key in lists and isinstance(value, list)
        if joined and (key not in data or isinstance(before, list)):
            files.entries.setdefault(key, []).extend((file, number) for number in range(len(value)))
            data[key] = [*(before or ()), *value]
        elif isinstance(value, dict) and (key not in data or isinstance(before, dict)):
            files.keys.setdefault(path, file)
            yield from _merge(data.setdefault(key, {}), value, (*at, key), file, files, lists)
        elif key in data:
            first = files.keys.get(path) or next(iter(files.places))
            text = f"is given in {first} already; keep it in one of them"
            yield Problem(path, text, source=file)
        else:
            files.keys[path] = file
            data[key] = value
