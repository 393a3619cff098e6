"""Compare the messages that an example expects with those that the router sent, in any order. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import ndiff
from operator import methodcaller
from typing import Any

from router_trio.protocol.headers import Headers
from router_trio.settings.examples import ExampleMessage, ExpectedMessage

_NO_JSON = object()


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message that the router sent on a connection."""

    connection: str
    subject: str
    headers: Headers
    payload: bytes

    def matches(self, expected: ExpectedMessage) -> bool:
        """Return True if the message has everything that `expected` names."""
        return not any(True for _ in self._differences(expected))

    def distance(self, expected: ExpectedMessage) -> int:
        """Return the number of differences from `expected`; a different subject counts as 100."""
        return sum(100 if field == "subject" else 1 for field in self._differences(expected))

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
        """The payload as JSON; an object that equals no value if the payload is not JSON."""
        try:
            return json.loads(self.payload, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return _NO_JSON

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.payload.decode("utf-8", "backslashreplace")

    def lines(self, expected: ExpectedMessage | None = None) -> list[str]:
        """Return the message as lines; with `expected`, only the fields that it names."""
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
        """Return the message for `--json`, with the payload as JSON if possible, else as text."""
        headers: dict[str, list[str]] = {}
        for name, value in self.headers.pairs():
            headers.setdefault(name, []).append(value)
        shown = {name: values[0] if len(values) == 1 else values for name, values in headers.items()}
        body = self.body
        payload = {"payload": self.text} if body is _NO_JSON else {"json": body}
        return {"connection": self.connection, "subject": self.subject, "headers": shown, **payload}


def payload_of(message: ExampleMessage | ExpectedMessage) -> bytes:
    """Return the payload of a message in the configuration."""
    if message.body is not None:
        return json.dumps(message.body, ensure_ascii=False).encode()
    return (message.payload or "").encode()


def expected_lines(expected: ExpectedMessage) -> list[str]:
    """Return an expected message as lines, in the form of `SentMessage.lines`."""
    lines = [] if expected.connection is None else [f"connection: {expected.connection}"]
    lines.append(f"subject: {expected.subject}")
    lines += [f"header {name}: {value}" for name, value in sorted((expected.headers or {}).items())]
    if expected.body is not None:
        return lines + _json_lines(expected.body)
    return lines if expected.payload is None else lines + _text_lines(expected.payload)


def same_json(one: Any, other: Any) -> bool:
    """Return True if two values are equal as JSON: 1 equals 1.0, but not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _json_lines(value: Any) -> list[str]:
    first, *rest = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).splitlines()
    return [f"json: {first}", *rest]


def _text_lines(text: str) -> list[str]:
    first, *rest = text.split("\n")
    return [f"payload: {first}", *rest]


# --- all messages of one example ---


def difference(expected: Sequence[ExpectedMessage], sent: Sequence[SentMessage]) -> list[str]:
    """Return the lines of a diff; none if each expected message was sent, and no other.

    A line begins with `- ` if it was expected but not sent, `+ ` if it was sent but not expected, and two spaces if it
    is in both. Each missing message is compared with the most similar unexpected one.
    """
    pairs = _matched(expected, sent)
    missing = [message for index, message in enumerate(expected) if index not in pairs]
    unexpected = [message for index, message in enumerate(sent) if index not in pairs.values()]
    lines: list[str] = []
    for message in missing:
        nearest = min(unexpected, key=methodcaller("distance", message), default=None)
        if nearest is None:
            lines += _marked("- ", expected_lines(message))
        else:
            unexpected.remove(nearest)
            # Lines that begin with "? " mark single characters. Here only entire lines are compared.
            compared = ndiff(expected_lines(message), nearest.lines(message))
            lines += [line for line in compared if not line.startswith("? ")]
        lines.append("")
    for other in unexpected:
        lines += [*_marked("+ ", other.lines()), ""]
    return lines[:-1]


def _marked(mark: str, lines: Sequence[str]) -> list[str]:
    return [mark + line for line in lines]


def _matched(expected: Sequence[ExpectedMessage], sent: Sequence[SentMessage]) -> dict[int, int]:
    """Return a maximum matching, as the index of the sent message by the index of the expected one."""
    expectation_of: dict[int, int] = {}

    def find(expectation: int, tried: set[int]) -> bool:
        for index, message in enumerate(sent):
            if index in tried or not message.matches(expected[expectation]):
                continue
            tried.add(index)
            if index not in expectation_of or find(expectation_of[index], tried):
                expectation_of[index] = expectation
                return True
        return False

    for expectation in range(len(expected)):
        find(expectation, set())
    return {expectation: index for index, expectation in expectation_of.items()}
