"""Compare expected with actual messages, in any order. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import ndiff
from typing import Any

from router_trio.protocol.headers import Headers
from router_trio.settings.examples import ExampleMessage, ExpectedMessage

_NO_JSON = object()


@dataclass(frozen=True, slots=True)
class Came:
    """A message that left the router on a connection."""

    connection: str
    subject: str
    headers: Headers
    payload: bytes

    def answers(self, expected: ExpectedMessage) -> bool:
        """Return True if it has everything that is expected."""
        return not any(True for _ in self._differences(expected))

    def likeness(self, expected: ExpectedMessage) -> int:
        """Return how much of what is expected it lacks: less is more alike. Another subject counts most."""
        return sum(100 if what == "subject" else 1 for what in self._differences(expected))

    def _differences(self, expected: ExpectedMessage) -> Iterator[str]:
        if expected.subject != self.subject:
            yield "subject"
        if expected.connection not in (None, self.connection):
            yield "connection"
        for name, value in (expected.headers or {}).items():
            if value not in self.headers.get_all(name):
                yield name
        if expected.body is not None and not same_json(expected.body, self.body):
            yield "json"
        if expected.payload is not None and expected.payload.encode() != self.payload:
            yield "payload"

    @property
    def body(self) -> Any:
        """The payload as JSON; something that equals nothing if it is none."""
        try:
            return json.loads(self.payload, parse_constant=_refused)
        except (ValueError, RecursionError):
            return _NO_JSON

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.payload.decode("utf-8", "backslashreplace")

    def lines(self, expected: ExpectedMessage | None = None) -> list[str]:
        """Return how it reads; beside something that was expected, without what was not asked for."""
        lines = []
        if expected is None or expected.connection is not None:
            lines.append(f"connection: {self.connection}")
        lines.append(f"subject: {self.subject}")
        headers = sorted(self.headers.pairs())
        if expected is not None:
            headers = [(name, value) for name, value in headers if name in (expected.headers or {})]
        lines += [f"header {name}: {value}" for name, value in headers]
        if expected is not None and expected.body is None and expected.payload is None:
            return lines
        body = self.body
        if body is not _NO_JSON and (expected is None or expected.body is not None):
            return lines + _json_lines(body)
        return lines + _text_lines(self.text)

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`, with the payload as JSON if it is that, else as text."""
        headers: dict[str, list[str]] = {}
        for name, value in self.headers.pairs():
            headers.setdefault(name, []).append(value)
        shown = {name: values[0] if len(values) == 1 else values for name, values in headers.items()}
        body = self.body
        payload = {"payload": self.text} if body is _NO_JSON else {"json": body}
        return {"connection": self.connection, "subject": self.subject, "headers": shown, **payload}


def payload_of(message: ExampleMessage | ExpectedMessage) -> bytes:
    """Return the payload of a message of the configuration."""
    if message.body is not None:
        return json.dumps(message.body, ensure_ascii=False).encode()
    return (message.payload or "").encode()


def expected_lines(expected: ExpectedMessage) -> list[str]:
    """Return how an expected message reads: as `Came.lines` has one that came."""
    lines = [] if expected.connection is None else [f"connection: {expected.connection}"]
    lines.append(f"subject: {expected.subject}")
    lines += [f"header {name}: {value}" for name, value in sorted((expected.headers or {}).items())]
    if expected.body is not None:
        return lines + _json_lines(expected.body)
    return lines if expected.payload is None else lines + _text_lines(expected.payload)


def same_json(one: Any, other: Any) -> bool:
    """Return True if two values are the same as JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _json_lines(value: Any) -> list[str]:
    first, *rest = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).splitlines()
    return [f"json: {first}", *rest]


def _text_lines(text: str) -> list[str]:
    first, *rest = text.split("\n")
    return [f"payload: {first}", *rest]


# --- all of one example ---


def difference(expected: Sequence[ExpectedMessage], came: Sequence[Came]) -> list[str]:
    """Return nothing if each expected message came and nothing else did; else what differs.

    A line begins with `- ` if it was expected and did not come, `+ ` if it came and was not expected, two spaces if
    it is in both. A message that came instead of another, by its likeness, is shown against it.
    """
    pairs = _answered(expected, came)
    missing = [one for index, one in enumerate(expected) if index not in pairs]
    others = [one for index, one in enumerate(came) if index not in pairs.values()]
    lines: list[str] = []
    for wanted in missing:
        nearest = min(others, key=lambda one: one.likeness(wanted), default=None)
        if nearest is None:
            lines += _marked("- ", expected_lines(wanted))
        else:
            others.remove(nearest)
            # The hints of ndiff below a line are for letters; here whole lines are compared.
            compared = ndiff(expected_lines(wanted), nearest.lines(wanted))
            lines += [line for line in compared if not line.startswith("? ")]
        lines.append("")
    for one in others:
        lines += [*_marked("+ ", one.lines()), ""]
    return lines[:-1]


def _marked(mark: str, lines: Sequence[str]) -> list[str]:
    return [mark + line for line in lines]


def _answered(expected: Sequence[ExpectedMessage], came: Sequence[Came]) -> dict[int, int]:
    """Return which message answers which expectation, as many as can be: one that answers two is given to either."""
    takes: dict[int, int] = {}

    def find(wanted: int, tried: set[int]) -> bool:
        for index, one in enumerate(came):
            if index in tried or not one.answers(expected[wanted]):
                continue
            tried.add(index)
            if index not in takes or find(takes[index], tried):
                takes[index] = wanted
                return True
        return False

    for wanted in range(len(expected)):
        find(wanted, set())
    return {wanted: index for index, wanted in takes.items()}
