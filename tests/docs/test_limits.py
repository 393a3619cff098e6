"""The page of limits says what is so: each bound that it names is in the code, and each bound in the code is on it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import pytest

from router_trio.settings.retry import RetrySettings
from router_trio.settings.routes import SourceSettings
from router_trio.settings.sections import ConnectionSettings, RouterSettings, Section, TelemetrySettings
from tests.docs.pages import DOCS, ROOT, page
from tests.docs.test_names import CODES, METRICS

PAGE = page(DOCS / "explanation" / "limits.md")
SECTIONS: dict[str, Section] = {
    "router": RouterSettings(),
    "telemetry": TelemetrySettings(),
    "connections.*": ConnectionSettings(),
    "routes.from": SourceSettings(subject="a"),
    "routes.retry": RetrySettings(),
}
UNITS: dict[str, Fraction | int] = {"KiB": 1024, "MiB": 1024**2, "ms": Fraction(1, 1000), "h": 3600}
WITHOUT_FACTOR = {"", "s", "bytes", "characters", "a second", "(no bound)"}

BOUNDING_WORD = re.compile(
    r"(?:^|_)(?:MAX|MIN|MOST|LEAST|LONGEST|LARGEST|SMALLEST|SHORT|LIMIT|BYTES|SECONDS|WITHIN|EXPIRES|TIMEOUT|LIFETIME|"
    r"KEPT|REMEMBERED|SILENCE|BUDGET)(?:_|$)"
)
"""A constant with one of these in its name is taken for a bound."""

NO_BOUNDS = {
    "MOST_WRAPPERS routing/raised.py": "of decorators in the user's own code",
    "MOST_FRAMES router/watchdog.py": "of a stack of Python's, which has a limit of its own",
    "MOST_WORKERS cli/run.py": "that of settings/sections.py, which is not imported for `--help`",
    "SETTLED_WITHIN cli/test/example_run.py": "of the clock of `router-trio test`, no router has it",
    "_ENTRY_BYTES routing/outlets/address.py": "an estimate, part of what MAX_REMEMBERED_BYTES bounds",
    "PASSWORD_BYTES embedded.py": "how long a password of ours is",
    "NAME_BYTES embedded.py": "how long a name of ours is",
    "_ANSWER_WITHIN nats/other_client.py": "of the demo, which reads streams of its own server",
    "ANSWER_WITHIN nats/requests.py": "of `router-trio dead-letters`, no router has it",
    "MOST_REPORTED cli/dead_letters/work.py": "lines that it prints",
    "_DIGEST_BYTES cli/dead_letters/letter.py": "the length of a digest",
    "MAX_FIELD cli/dead_letters/letter.py": "of `router-trio dead-letters`, no router has it",
    "MOST_CONSUMERS nats/stored.py": "of `router-trio dead-letters`, no router has it",
    "MOST_TOGETHER nats/stored.py": "of `router-trio dead-letters`, no router has it",
    "TOGETHER_BYTES nats/stored.py": "of `router-trio dead-letters`, no router has it",
    "MAX_ORDER client/publisher.py": "the longest number, to measure a line with",
    "_DIGEST_BYTES routing/plans.py": "how long an id of ours is",
    "LONGEST_LINE expressions/language/source.py": "of the configuration, shown in an error",
    "MAX_NAMES expressions/headers.py": "of the configuration, none that a message brings",
    "MAX_INT expressions/values.py": "the range of a type",
    "MIN_INT expressions/values.py": "the range of a type",
    "MAX_UINT expressions/values.py": "the range of a type",
    "MAX_TIMESTAMP expressions/functions/times.py": "the range of a type",
    "MIN_TIMESTAMP expressions/functions/times.py": "the range of a type",
    "MAX_DURATION expressions/functions/times.py": "the range of a type",
    "FENCE_TIMEOUT connection/session.py": "a part of liveness_interval",
    "HASTY_CONNECT_TIMEOUT settings/checks/warnings.py": "below it `check` warns",
    "MOST_SHAPES settings/checks/circles.py": "of a search in the configuration, none that a message brings",
    "MOST_LOOKS settings/checks/circles.py": "of a search in the configuration, none that a message brings",
    "MOST_NAMED settings/checks/circles.py": "of one line that `check` prints",
    "HASTY_MAX_RECONNECT_DELAY settings/checks/warnings.py": "below it `check` warns",
    "LONGEST_SHOWN cli/explanation.py": "of the user's own message, on the user's screen",
    "_READ_BYTES telemetry/http/connection.py": "read at once, within MAX_HEADER_BYTES and MAX_BODY_BYTES",
}
"""Constants that are named like bounds and bound nothing that comes from outside: why."""


@dataclass(frozen=True)
class Row:
    """A row of a table: `name` and `file` of a constant, or the key of a setting and no file."""

    name: str
    file: str
    default: str
    seen_in: str

    def __str__(self) -> str:
        return f"{self.name} {self.file}".strip()


def rows() -> Iterator[Row]:
    for line in PAGE.text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] != "what" and not cells[0].startswith("---"):
            found = re.fullmatch(r"`([\w.*]+)`(?: `([\w/.]+\.py)`)?", cells[1])
            assert found is not None, f"{cells[1]!r} names no constant with its file, and no setting"
            yield Row(found[1], found[2] or "", cells[2], cells[4])


ROWS = tuple(rows())


def number(text: str) -> Fraction:
    """The value that a cell gives: "16 KiB", "1,024", "5 s", "2^64 - 1"."""
    power = re.fullmatch(r"2\^([0-9]+) - 1", text)
    if power is not None:
        return Fraction(2) ** int(power[1]) - 1
    found = re.fullmatch(r"(-?[0-9][0-9,]*(?:\.[0-9]+)?) ?(.*)", text)
    assert found is not None, text
    unit = found[2].removesuffix(" (no bound)")
    assert unit in UNITS or unit in WITHOUT_FACTOR, f"{text!r}: what is {unit!r}"
    return Fraction(found[1].replace(",", "")) * UNITS.get(unit, 1)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_bound_has_the_value_that_the_page_gives(row: Row) -> None:
    if row.file:
        assert (ROOT / "router_trio" / row.file).is_file()
        dotted = row.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        value = getattr(importlib.import_module(f"router_trio.{dotted}"), row.name)
    else:
        section, _, key = row.name.rpartition(".")
        value = getattr(SECTIONS[section], key)
    assert number(row.default) == Fraction(repr(value))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_shows_a_bound_exists(row: Row) -> None:
    names = re.findall(r"`([^`]+)`", row.seen_in)
    assert row.seen_in == (", ".join(f"`{name}`" for name in names) or "none")
    assert set(names) <= METRICS.keys() | CODES


def named_like_bounds() -> set[str]:
    return {f"{name} {file}" for name, file in constants()}


def constants() -> Iterator[tuple[str, str]]:
    """The name and the file of each constant that holds a number and is named like a bound."""
    package = ROOT / "router_trio"
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        if file.parts[0] in ("testing", "demo"):  # where nothing comes from outside
            continue
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            value = getattr(statement, "value", None)
            for target in targets:
                if isinstance(target, ast.Name) and BOUNDING_WORD.search(target.id) and _is_number(value):
                    yield target.id, str(file)


def _is_number(value: ast.expr | None) -> bool:
    """True for a number, and for a calculation with numbers and names."""
    if isinstance(value, ast.BinOp):
        return _is_number(value.left) and _is_number(value.right)
    if isinstance(value, ast.UnaryOp):
        return _is_number(value.operand)
    return isinstance(value, ast.Name) or (isinstance(value, ast.Constant) and type(value.value) in (int, float))


def test_every_bound_of_the_code_is_on_the_page_or_excluded_for_a_reason() -> None:
    missing = named_like_bounds() - {str(row) for row in ROWS} - NO_BOUNDS.keys()
    assert not missing, f"put them into docs/explanation/limits.md, or say in NO_BOUNDS why not: {sorted(missing)}"


def test_what_is_excluded_is_there_and_not_on_the_page() -> None:
    named = named_like_bounds()
    assert NO_BOUNDS.keys() <= named
    assert not NO_BOUNDS.keys() & {str(row) for row in ROWS}
    assert len(named) > 80


def test_every_setting_that_bounds_something_is_on_the_page() -> None:
    named = {row.name for row in ROWS}
    for section, settings in SECTIONS.items():
        for key in type(settings).model_fields:
            if re.search(r"^max_|_max_|_timeout$|_attempts$|_ratio$|_wait$", key):
                # Without one there is a bound of our own.
                assert f"{section}.{key}" in named or getattr(settings, key) is None


def test_no_bound_is_there_twice() -> None:
    assert len({str(row) for row in ROWS}) == len(ROWS)


def test_the_bounds_of_the_examples_are_as_they_are_in_their_files() -> None:
    found = re.findall(r"^\| [^|]+ \| `([^`|]+)` \| \[\w+\]\(([^)]+)\) \|", PAGE.text, re.MULTILINE)
    assert len(found) == 5
    for setting, link in found:
        assert setting in (PAGE.path.parent / link).read_text(encoding="utf-8"), f"{link} has no {setting}"
