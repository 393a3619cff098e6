"""Compare expected with actual messages, in any order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import ndiff

from router_trio.cli.test.message import Came, expected_lines
from router_trio.settings.examples import ExpectedMessage


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
