"""The official tests of JSON Schema, for both drafts."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from router_trio.expressions.body import decode
from router_trio.expressions.values import Budget
from router_trio.schemas.schema import Schema
from tests.unit.schemas.suite import DRAFTS, LEFT_OUT, directory, groups

LEAST = {"draft2020-12": 1232, "draft7": 915}
"""Minimum number of cases that must pass, so that none is left out by accident."""
MOST_LEFT_OUT = {"draft2020-12": 22, "draft7": 11}


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_official_tests_pass(draft: str) -> None:
    tests = directory()
    if tests is None:
        pytest.skip("the suite can't be had: Go is not here, or the module with a copy of it can't be fetched")
    wrong, passed, left_out = [], 0, Counter[str]()
    for group in groups(tests, draft):
        try:
            schema = Schema(json.dumps(group.schema).encode())
        except ValueError as error:
            why = next((one for text, one in LEFT_OUT.items() if text in str(error)), "")
            left_out[why] += 1
            if not why:
                wrong.append(f"{group.name}: refused: {error}")
            continue
        for name, data, fits in group.tests:
            miss = schema.miss(decode(json.dumps(data).encode(), Budget(10**9)))
            if (miss is None) is fits:
                passed += 1
            else:
                wrong.append(f"{group.name}, {name}: {'fits' if miss is None else miss}")
    print(f"{draft}: {passed} cases pass, groups left out: {dict(left_out)}")
    assert not wrong, "\n".join(wrong)
    assert passed >= LEAST[draft]
    assert left_out.total() <= MOST_LEFT_OUT[draft]
