"""The expressions of the decision for CEL give the results that the page shows, for the message on that page."""

from __future__ import annotations

import json

import pytest

from router_trio.expressions.message import Facts
from router_trio.expressions.output import payload_of
from router_trio.protocol.headers import Headers, encode
from router_trio.settings.expressions import PAYLOAD, compile_for
from tests.docs.pages import DOCS, Block, page

PAGE = page(DOCS / "decisions" / "cel.md")
EXPRESSIONS = [block for block in PAGE.blocks if block.language == "cel"]


@pytest.mark.parametrize("block", EXPRESSIONS, ids=str)
def test_an_expression_gives_the_result_on_the_page(block: Block) -> None:
    (message,) = [one.text for one in PAGE.blocks if one.language == "json"]
    json.loads(message)
    text, _, expected = block.text.strip().partition(" // ")
    expression = compile_for(text, PAYLOAD, from_stream=True)
    facts = Facts("orders.7.created", encode(Headers([("region", "eu")])), message.encode())
    assert payload_of(expression.evaluate(facts), 1_000) == expected.encode()


def test_each_job_named_in_a_row_has_an_expression() -> None:
    assert len(EXPRESSIONS) == 10
