"""The page of limits has each bound of the code. `test_reference.py` checks that its text is current."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator

import pytest

from router_trio.connection.session import SHARED_WITHIN
from router_trio.outbox.fences import FENCE_INTERVAL, SHARED_FENCE
from tests.docs.pages import DOCS, ROOT, page
from tests.docs.test_names import CODES, METRICS
from tests.support.syntax import parsed

PAGE = page(DOCS / "explanation" / "limits.md")
GENERATOR = runpy.run_path(str(DOCS / "reference" / "limits.py"))
SECTIONS = GENERATOR["SECTIONS"]
LIMITS = {str(limit): limit for limit in GENERATOR["limits"]()}

BOUNDING_WORD = re.compile(
    r"(?:^|_)(?:MAX|MIN|MOST|LEAST|LONGEST|LARGEST|SMALLEST|SHORT|LIMIT|BYTES|SECONDS|WITHIN|EXPIRES|TIMEOUT|LIFETIME|"
    r"KEPT|REMEMBERED|SILENCE|BUDGET)(?:_|$)"
)
"""A constant with one of these in its name is considered a bound."""

NO_BOUNDS = {
    "MOST_SENDS protocol/metadata.py": "of what we write; what another client has written is ignored",
    "MOST_NAMED settings/problems.py": "names that an answer to an unknown one lists",
    "MOST_STEPS online/circles.py": "of a search in what servers have answered, which `check` makes once",
    "MOST_TOKENS online/circles.py": "of the same search",
    "MOST_VALUES telemetry/metrics/page.py": "texts in a cache, each of which is rendered again when it was dropped",
    "PART_BYTES telemetry/pieces.py": "of a page of ours, which is sent in parts",
    "REMEMBERED nats/jetstream/rolled_back_source.py": "of a record of ours, which MAX_RECORD bounds",
    "MOST_WRAPPERS routing/handlers/tracebacks.py": "of decorators in the user's own code",
    "MOST_FRAMES router/watchdog.py": "of a stack of Python's, which has a limit of its own",
    "MOST_WORKERS cli/run/command.py": "that of settings/sections.py, which is not imported for `--help`",
    "MOST_PASSES audit/waiting.py": "over a stream that grows meanwhile: each reads only what is new",
    "_TOKEN_BYTES protocol/schedules.py": "how long a digest of ours is",
    "MOST_ATTEMPTS routing/stream/retries/origin.py": "of a header of ours: another client has written it",
    "LONGEST_TTL protocol/buckets.py": "a longer one is passed on as it is",
    "MOST_ANSWERS routing/stream/retries/origin.py": "of the same header",
    "SETTLED_WITHIN cli/test/example_run.py": "of the clock of `router-trio test`, no router has it",
    "_ENTRY_BYTES routing/outlets/address.py": "an estimate, part of what MAX_REMEMBERED_BYTES bounds",
    "PASSWORD_BYTES embedded.py": "how long a password of ours is",
    "NAME_BYTES embedded.py": "how long a name of ours is",
    "_LONGEST_URL embedded.py": "of the url file, which is the router's own",
    "_ANSWER_WITHIN nats/other_client.py": "of the demo, which reads streams of its own server",
    "NOTICED_WITHIN nats/partitions_change.py": "of `router-trio partitions --change`, no router has it",
    "STORED_WITHIN nats/partitions_change.py": "of `router-trio partitions --change`, no router has it",
    "FREED_WITHIN nats/change_lock.py": "of `router-trio partitions --change`, no router has it",
    "MOST_SHOWN nats/change_lock.py": "of `router-trio partitions --change`, no router has it",
    "ANSWER_WITHIN nats/requests.py": "of `router-trio dead-letters`, no router has it",
    "MOST_REPORTED cli/dead_letters/actions.py": "lines that it prints",
    "LEAST_WIDTH cli/top/table.py": "of a terminal, for which the table is made",
    "MAX_ANSWER cli/router_pages.py": "of `router-trio top` and `tap`, no router has it",
    "TIMEOUT cli/router_pages.py": "of `router-trio top` and `tap`, no router has it",
    "_DIGEST_BYTES audit/letter.py": "the length of a digest",
    "MAX_FIELD audit/letter.py": "of `router-trio dead-letters`, no router has it",
    "EXPIRES_WITHIN audit/removals.py": "of `router-trio audit`, no router has it",
    "MAX_PER_SUBJECT audit/removals.py": "of `router-trio audit`, no router has it",
    "MAX_SUBJECTS audit/removals.py": "of `router-trio audit`, no router has it",
    "STARTS_WITHIN audit/start.py": "of `router-trio audit`, no router has it",
    "MAX_ENDINGS audit/expectations.py": "of `router-trio audit`, no router has it",
    "MAX_SPAN audit/audit.py": "of `router-trio audit`, no router has it",
    "MAX_LATER audit/comparison.py": "of `router-trio audit`, no router has it",
    "MAX_READ audit/find.py": "of `router-trio find`, no router has it",
    "MAX_BEHIND audit/find.py": "of `router-trio find`, no router has it",
    "MAX_READ audit/trial.py": "of `router-trio diff`, no router has it",
    "MAX_CONTROL_LINE audit/trial.py": "of `router-trio diff`, and the default of nats-server",
    "MAX_LAST cli/diff.py": "of `router-trio diff`, no router has it",
    "MAX_FINDINGS audit/report.py": "of `router-trio audit`, no router has it",
    "MAX_LEVEL_DIGITS nats/jetstream/api.py": "how long a number of the API is",
    "MAX_LOST nats/jetstream/api.py": "of `router-trio check --online`, no router has it",
    "MOST_NAMED online/servers.py": "of `router-trio check --online`, no router has it",
    "MOST_NAMED cli/check_online.py": "of `router-trio check --online`, no router has it",
    "MOST_TAKERS online/asking.py": "of `router-trio check --online`, no router has it",
    "REPORTS_WITHIN nats/message_trace.py": "of `router-trio trace`, no router has it",
    "MAX_REPORTS nats/message_trace.py": "of `router-trio trace`, no router has it",
    "MAX_EVENTS nats/message_trace.py": "of `router-trio trace`, no router has it",
    "MAX_REPORT_BYTES nats/message_trace.py": "of `router-trio trace`, no router has it",
    "MOST_SHOWN cli/message_path.py": "lines that `router-trio trace` prints",
    "MAX_REFUSALS audit/repair.py": "of `router-trio audit`, no router has it",
    "SHOWN_WITHIN nats/pause.py": "of `router-trio pause`, no router has it",
    "LED_WITHIN cli/partitions.py": "of `router-trio partitions`, no router has it",
    "MOST_REPORTED cli/replay.py": "lines that it prints",
    "MOST_PLACES router/run.py": "places in one log line",
    "MAX_UNPACKED audit/comparison.py": "of `router-trio audit`, no router has it",
    "MAX_RECENT audit/comparison.py": "of `router-trio audit`, no router has it",
    "MAX_LISTED position/answer.py": "of `router-trio position`, no router has it",
    "MAX_REPEATED audit/comparison.py": "of `router-trio audit`, no router has it",
    "MOST_CONSUMERS nats/stored.py": "of `router-trio dead-letters`, no router has it",
    "MOST_PULLED nats/range_reader.py": "of `router-trio audit` and `replay`, no router has it",
    "MOST_CREATED nats/range_reader.py": "of `router-trio audit` and `replay`, no router has it",
    "PULLED_BYTES nats/range_reader.py": "of `router-trio audit` and `replay`, no router has it",
    "DELETED_WITHIN nats/range_reader.py": "of `router-trio audit` and `replay`, no router has it",
    "MOST_TOGETHER nats/stored.py": "of `router-trio dead-letters`, no router has it",
    "TOGETHER_BYTES nats/stored.py": "of `router-trio dead-letters`, no router has it",
    "MAX_ORDER client/publisher.py": "the longest number, to measure a line with",
    "_DIGEST_BYTES routing/route_plans.py": "how long an id of ours is",
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
    "MOST_NAMED routing/stream/partitions/source.py": "of one reason, which counts the others",
    "MOST_NAMED settings/checks/circles.py": "of one line that `check` prints",
    "HASTY_MAX_RECONNECT_DELAY settings/checks/warnings.py": "below it `check` warns",
    "LONGEST_SHOWN cli/explanation.py": "of the user's own message, on the user's screen",
    "_READ_BYTES telemetry/http/connection.py": "read at once, within MAX_HEADER_BYTES and MAX_BODY_BYTES",
}
"""Constants that are named like bounds and bound no external input: why."""


def test_each_limit_of_the_text_has_its_value_on_the_page() -> None:
    """None may be left out because it is written in another way than the generator parses."""
    assert "{" not in re.sub(r"`[^`]*`", "", PAGE.text)
    for limit in LIMITS.values():
        assert f"| {limit.cells} |" in PAGE.text


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (64 * 1024**2, "bytes", "64 MiB"),
        (256 * 1024, "bytes", "256 KiB"),
        (1016, "bytes", "1,016 bytes"),
        (0.75, "s", "750 ms"),
        (2.0, "s", "2 s"),
        (3600.0, "s", "1 h"),
        (1e9, "s", "1,000,000,000 s"),
        (4096, "characters", "4,096 characters"),
        (-1, "", "-1"),
        (0.01, "", "0.01"),
        (2**64 - 1, "", "2^64 - 1"),
    ],
)
def test_values_are_formatted_for_people(value: float, unit: str, written: str) -> None:
    assert GENERATOR["written"](value, unit) == written


def test_the_decision_on_fences_has_the_numbers_of_the_code() -> None:
    text = " ".join(page(DOCS / "decisions" / "fences.md").text.split())
    assert f"those within {FENCE_INTERVAL * 1000:g} ms share a fence" in text
    assert f"Up to {SHARED_FENCE} forwarded messages are confirmed up to {SHARED_WITHIN * 1000:g} ms later" in text


def test_each_limit_names_a_metric_or_log_code_that_exists() -> None:
    rows = re.findall(r"^\| (?:[^|]+ \| ){4}([^|]*)\|$", PAGE.text, re.MULTILINE)
    shown = {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}
    assert len(shown) > 30
    assert shown <= METRICS.keys() | CODES


def named_like_bounds() -> set[str]:
    return {f"{name} {file}" for name, file in constants()}


def constants() -> Iterator[tuple[str, str]]:
    """Yield the name and the file of each constant that holds a number and is named like a bound."""
    package = ROOT / "router_trio"
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        if file.parts[0] in ("testing", "demo"):  # modules without external input
            continue
        for statement in parsed(path).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            value = getattr(statement, "value", None)
            for target in targets:
                if isinstance(target, ast.Name) and BOUNDING_WORD.search(target.id) and _is_number(value):
                    yield target.id, str(file)


def _is_number(value: ast.expr | None) -> bool:
    """Return True for a number, and for a calculation with numbers and names."""
    if isinstance(value, ast.BinOp):
        return _is_number(value.left) and _is_number(value.right)
    if isinstance(value, ast.UnaryOp):
        return _is_number(value.operand)
    return isinstance(value, ast.Name) or (isinstance(value, ast.Constant) and type(value.value) in (int, float))


def test_every_bound_of_the_code_is_on_the_page_or_excluded_for_a_reason() -> None:
    missing = named_like_bounds() - LIMITS.keys() - NO_BOUNDS.keys()
    assert not missing, f"put them into docs/reference/limits.in, or say in NO_BOUNDS why not: {sorted(missing)}"


def test_an_excluded_bound_exists_and_is_not_on_the_page() -> None:
    named = named_like_bounds()
    assert NO_BOUNDS.keys() <= named
    assert not NO_BOUNDS.keys() & LIMITS.keys()
    assert len(named) > 80


def test_every_setting_that_bounds_something_is_on_the_page() -> None:
    for section, settings in SECTIONS.items():
        for key in type(settings).model_fields:
            if re.search(r"^max_|_max_|_timeout$|_attempts$|_ratio$|_wait$", key):
                # Without a setting there is a bound of our own.
                assert f"{section}.{key}" in LIMITS or getattr(settings, key) is None


def test_no_bound_is_listed_twice() -> None:
    assert len(LIMITS) == len(list(GENERATOR["limits"]()))


def test_the_bounds_of_the_examples_are_those_of_their_files() -> None:
    found = re.findall(r"^\| [^|]+ \| `([^`|]+)` \| \[\w+\]\(([^)]+)\) \|", PAGE.text, re.MULTILINE)
    assert len(found) == 5
    for setting, link in found:
        assert setting in (PAGE.path.parent / link).read_text(encoding="utf-8"), f"{link} has no {setting}"
