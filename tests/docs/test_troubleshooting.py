"""The reasons and quotations on the troubleshooting page are those of the code."""

from __future__ import annotations

import re

import pytest

from router_trio.errors import reasons
from router_trio.errors.reasons import TABLE, Fault
from tests.docs.pages import DOCS, ROOT, page

PAGE = page(DOCS / "operations" / "troubleshooting.md")
CODE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "router_trio").rglob("*.py")))
FIRST_CELLS = re.findall(r"^\| ([^|]+) \|", PAGE.text, re.MULTILINE)
REASONS = sorted({word for cell in FIRST_CELLS for word in re.findall(r"`([a-z_]+?)_?(?:\.\.\.)?`", cell)})
NO_REASONS = {"explain", "paused", "received", "routed", "queue", "handler"}
"""Words that the first column has in code as well."""


def test_listed_reasons_exist_in_the_code() -> None:
    listed = [word for word in REASONS if word not in NO_REASONS]
    assert [reason for reason in listed if not re.search(rf"""["']{reason}[_"']""", CODE)] == []


def test_each_reason_has_its_row_with_cause_and_cure() -> None:
    rows, with_rows = set(PAGE.text.splitlines()), [one for one in TABLE.values() if one.fault is not Fault.NONE]
    assert [one for one in with_rows if f"| `{one.name}` | {one.cause} | {one.cure} |" not in rows] == []


@pytest.mark.parametrize(
    ("error", "heading"), [("LinkError", "NATS_CONNECTION_FAILED"), ("SourceError", "NATS_SUBSCRIBE_ERROR")]
)
def test_each_reason_of_a_link_or_a_source_is_in_its_own_table(error: str, heading: str) -> None:
    table = PAGE.text.split(f"The `reason` of `{heading}`")[1].split("\nThe `reason` of ")[0].split("\n## ")[0]
    names = set(re.findall(rf"\b{error}\((?:[^()]|\([^()]*\))*?reason=reasons\.([A-Z_]+)", CODE)) - {"NOT_CONNECTED"}
    assert names
    assert [name for name in sorted(names) if f"\n| `{getattr(reasons, name)}` |" not in table] == []


def test_reasons_are_found() -> None:
    assert {"network", "dns", "timeout", "certificate", "expression", "slow_consumer"} <= set(REASONS)


def test_quoted_texts_are_those_of_the_code() -> None:
    for text in ("can't import", "the server refused the credentials", "and none in PATH"):
        assert any(text in cell for cell in FIRST_CELLS), text
        assert text in CODE, text
