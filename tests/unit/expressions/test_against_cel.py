"""Random expressions on random data give the same value, type or failure as in Google's CEL runtime."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from router_trio.errors import EvaluationError, ExpressionError
from router_trio.expressions.expression import compile_expression
from tests.unit.expressions.activation import Activation
from tests.unit.expressions.drawn import Drawer, data
from tests.unit.expressions.drawn_values import VARIABLES
from tests.unit.expressions.oracle import FAILED, REFUSED, Oracle, outcome

DATA_EACH = 4
"""Number of random data sets on which each expression is evaluated."""


def same(ours: Any, theirs: Any) -> bool:
    """Return True if two values have the same type and are equal. NaN equals NaN."""
    if ours.__class__ is not theirs.__class__:
        return False
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(value, theirs[key]) for key, value in ours.items())
    return bool(ours == theirs or (ours != ours and theirs != theirs))


def compared(seed: int, cases: int) -> tuple[Counter[str], list[str]]:
    """Return the number of cases by outcome, and the differences."""
    rng = random.Random(seed)
    oracle = Oracle(VARIABLES)
    drawer = Drawer(rng)
    counts: Counter[str] = Counter()
    differences = []
    while counts.total() < cases:
        text = drawer.expression()
        theirs = oracle.compiled(text)
        try:
            ours = compile_expression(text, VARIABLES)
        except ExpressionError as error:
            counts[REFUSED] += 1
            if theirs is not None:
                differences.append(f"{text}\n    ours refuses it: {error.message}")
            continue
        if theirs is None:
            counts[REFUSED] += 1
            differences.append(f"{text}\n    theirs refuses it")
            continue
        for _ in range(DATA_EACH):
            values = data(rng)
            expected, wanted = outcome(theirs, oracle.activation(values))
            try:
                got = ours.evaluate(Activation(values))
                ended = ""
            except EvaluationError as error:
                got, ended = str(error), FAILED
            counts[ended or type(got).__name__] += 1
            if ended != expected or (not ended and not same(got, wanted)):
                differences.append(
                    f"{text}\n    on {values!r}\n    ours:   {ended} {got!r}\n    theirs: {expected} {wanted!r}"
                )
    return counts, differences


def check(seed: int, cases: int) -> None:
    counts, differences = compared(seed, cases)
    print(f"{counts.total()} cases, {len(differences)} differences; they ended as {dict(counts.most_common())}")
    assert not differences, "\n".join(differences[:20])


@pytest.mark.slow
def test_ten_thousand_random_expressions_give_the_same_as_cel_cpp() -> None:
    check(1, 10_000)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_million_random_expressions_give_the_same_as_cel_cpp(seed: int) -> None:
    check(seed, 100_000)
