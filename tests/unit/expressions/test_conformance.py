"""The conformance tests of the CEL specification, for the implemented parts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from router_trio.errors import EvaluationError, ExpressionError
from router_trio.expressions.expression import compile_expression
from router_trio.expressions.values import equal
from tests.unit.expressions.activation import Activation
from tests.unit.expressions.conformance import (
    CASES_LEFT_OUT,
    FILES,
    FILES_LEFT_OUT,
    MESSAGES,
    SECTIONS_LEFT_OUT,
    UNCHECKED,
    Case,
    LeftOut,
    case_of,
    cases,
    directory,
)
from tests.unit.expressions.drawn_values import AVOIDED

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "expressions.md"

LEAST = {
    "basic": 41, "comparisons": 448, "conversions": 109, "fields": 60, "fp_math": 30, "integer_math": 64, "lists": 39,
    "logic": 25, "macros": 44, "namespace": 3, "parse": 176, "plumbing": 5, "string": 51, "string_ext": 95,
    "timestamps": 93, "type_deduction": 30,
}  # fmt: skip
"""Minimum number of cases of each file that must pass, so that none is left out by accident."""


def verdict(case: Case) -> str:
    """Return what is wrong with a case, `""` if it passes. Raises LeftOut if it is refused for a known reason."""
    try:
        expression = compile_expression(case.expression, case.variables)
    except ExpressionError as error:
        if "message types are not supported" in error.message:
            raise LeftOut(MESSAGES) from None
        if not case.checked and not case.fails:
            raise LeftOut(UNCHECKED) from None
        return "" if case.fails else f"does not compile: {error.message}"
    if case.type is not None and expression.type != case.type:
        return f"is of type {expression.type} and not {case.type}"
    if case.only_checked:
        return ""
    try:
        value = expression.evaluate(Activation(case.values))
    except EvaluationError as error:
        return "" if case.fails else f"fails: {error}"
    if case.fails:
        return f"does not fail, but gives {value!r}"
    if value.__class__ is case.wanted.__class__ and (equal(value, case.wanted) or value != value != case.wanted):
        return ""
    return f"gives {value!r} and not {case.wanted!r}"


@pytest.mark.parametrize("name", FILES)
def test_the_conformance_tests_of_the_specification_pass(name: str) -> None:
    data = directory()
    if data is None:
        pytest.skip("the specification can't be had: Go is not here, or the module cel.dev/expr can't be fetched")
    wrong, left_out, passed = [], Counter[str](), 0
    for full_name, test in cases(data / f"{name}.textproto"):
        if "/".join(full_name.split("/")[:2]) in SECTIONS_LEFT_OUT:
            left_out["section"] += 1
            continue
        try:
            case = case_of(full_name, test)
            problem = verdict(case)
        except LeftOut as reason:
            left_out[str(reason)] += 1
            continue
        passed += not problem
        if problem:
            wrong.append(f"{full_name}: {case.expression!r} {problem}")
    print(f"{name}: {passed} cases pass, left out: {dict(left_out)}")
    assert not wrong, "\n".join(wrong)
    assert passed >= LEAST[name]
    assert set(left_out) <= {"section", *CASES_LEFT_OUT}


def test_every_file_of_the_specification_is_run_or_excluded_with_a_reason() -> None:
    data = directory()
    if data is None:
        pytest.skip("the specification can't be had: Go is not here, or the module cel.dev/expr can't be fetched")
    assert {path.stem for path in data.glob("*.textproto")} == {*FILES, *FILES_LEFT_OUT}
    sections = {"/".join(name.split("/")[:2]) for file in data.glob("*.textproto") for name, _ in cases(file)}
    assert SECTIONS_LEFT_OUT.keys() <= sections


def test_the_documentation_lists_exclusions_and_differences() -> None:
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|", PAGE.read_text(encoding="utf-8"), flags=re.M))
    for table in (FILES_LEFT_OUT, SECTIONS_LEFT_OUT):
        for name, why in table.items():
            assert rows[f"`{name}`"] == why
    for name, why in CASES_LEFT_OUT.items():
        assert rows[name] == why
    assert AVOIDED.keys() <= rows.keys()
    assert f"{sum(LEAST.values()):,} cases" in PAGE.read_text(encoding="utf-8")
