"""Find the place of a key in a TOML file: its line, and the name of the route that it belongs to.

`tomllib` returns values without their places. So the keys are read a second time, and only if a problem is to be
reported. The text is known to be valid TOML: the reader looks for keys and skips values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from router_trio.errors.quotes import excerpt

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}' r"|'''(?:[^']|'(?!''))*'{3,5}" r'|"(?:[^"\\\n]|\\.)*"|' r"'[^'\n]*'", re.DOTALL
)
_OTHER = re.compile(r"[^,\]}#\n]*")
_ROUTE = re.compile(r"routes\[([0-9]+)\]")

Location = tuple[str | int, ...]


class Places:
    """The places of the keys of one file. `text` is its content, `data` the parsed content."""

    def __init__(self, text: str, data: Mapping[str, Any]) -> None:
        self._text = text
        self._data = data

    def forget_values(self) -> None:
        """Forget the parsed content, except for the names of routes: it takes a kilobyte for each of them."""
        routes = self._data.get("routes")
        names = [{"name": _name_of(route)} for route in routes] if isinstance(routes, list) else []
        self._data = {"routes": names}

    def place_of(self, path: str, *, with_line: bool = True) -> str:
        """Return the place of a key path such as `routes[0].to` as text; empty if the file does not have it."""
        parts = []
        line = self.line_of(path) if with_line else 0
        if line:
            parts.append(f"line {line}")
        name = self._route_name(path)
        if name is not None:
            parts.append(f"route {excerpt(name)!r}")
        return ", ".join(parts)

    def line_of(self, path: str) -> int:
        """Return the line of a key, or of the section that lacks it; 0 if neither is in the file."""
        while path:
            if path in self._lines:
                return self._lines[path]
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return 0

    def _route_name(self, path: str) -> str | None:
        found, routes = _ROUTE.match(path), self._data.get("routes")
        if found is None or not isinstance(routes, list) or int(found[1]) >= len(routes):
            return None
        return _name_of(routes[int(found[1])])

    @cached_property
    def _lines(self) -> dict[str, int]:
        try:
            return _Keys(self._text).lines
        except IndexError:  # a key that only TOML understands is not worth a failure
            return {}


def _name_of(route: object) -> str | None:
    name = route.get("name") if isinstance(route, dict) else None
    return name if isinstance(name, str) and name else None


class _Keys:
    """Read the keys of a valid document, with their lines."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._text = text
        self._at = 0
        self._counted = (0, 1)
        self._arrays: dict[str, int] = {}
        table = ""
        while self._skip(_BLANK) < len(text):
            if text.startswith("[[", self._at):
                table = self._header(2)
            elif text[self._at] == "[":
                table = self._header(1)
            else:
                self._pair(table)

    def _header(self, brackets: int) -> str:
        start = self._at
        self._at += brackets
        path = ""
        keys = self._dotted()
        for number, key in enumerate(keys):
            path = _joined(path, key)
            if brackets == 2 and number == len(keys) - 1:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            self._note(path, start)
            if path in self._arrays:
                path = f"{path}[{self._arrays[path]}]"
        self._note(path, start)
        self._skip(_SPACE)
        self._at += brackets
        return path

    def _dotted(self) -> list[str]:
        keys = []
        while True:
            self._skip(_SPACE)
            found = _KEY.match(self._text, self._at)
            if found is None:
                raise IndexError("no key where there must be one")
            self._at = found.end()
            keys.append(found[0][1:-1] if found[0][0] in "\"'" else found[0])
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _pair(self, table: str) -> None:
        start, path = self._at, table
        for key in self._dotted():
            path = _joined(path, key)
            self._note(path, start)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: str) -> None:
        self._skip(_BLANK)
        character = self._text[self._at]
        if character == "[":
            self._entries("]", path)
        elif character == "{":
            self._entries("}", path)
        elif (found := _STRING.match(self._text, self._at)) is not None:
            self._at = found.end()
        else:
            self._skip(_OTHER)

    def _entries(self, end: str, path: str) -> None:
        self._at += 1
        index = 0
        while self._skip(_BLANK) < len(self._text) and self._text[self._at] != end:
            if end == "}":
                self._pair(path)
            else:
                self._note(f"{path}[{index}]", self._at)
                self._value(f"{path}[{index}]")
            index += 1
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
        self._at += 1

    def _skip(self, what: re.Pattern[str]) -> int:
        found = what.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return self._at

    def _note(self, path: str, at: int) -> None:
        counted, line = self._counted
        line += self._text.count("\n", counted, at)
        self._counted = (at, line)
        self.lines.setdefault(path, line)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
