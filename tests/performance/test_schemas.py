"""Cost of a schema per message: instructions are bounded, and the share of a route's time is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from router_trio.schemas.schema import Schema
from tests.performance.instructions import instructions

SCHEMA = {
    "type": "object",
    "required": ["id", "total", "items"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 40},
        "total": {"type": "number", "minimum": 0},
        "priority": {"enum": ["high", "low"]},
        "customer": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
    },
    "$defs": {
        "item": {
            "type": "object",
            "required": ["sku", "count"],
            "properties": {"sku": {"type": "string"}, "count": {"type": "integer", "minimum": 1}},
            "additionalProperties": False,
        }
    },
}
ORDER: dict[str, Any] = {"id": "7", "total": 150.5, "priority": "high", "customer": {"id": 5}}


def order(items: int) -> dict[str, Any]:
    return {**ORDER, "items": [{"sku": "a", "count": 1 + number} for number in range(items)]}


def judged(schema: Any, body: Any) -> Callable[[], object]:
    compiled = Schema(json.dumps(schema).encode())
    assert compiled.miss(body) is None
    return lambda: compiled.miss(body)


def test_a_schema_takes_few_instructions() -> None:
    two, many = instructions(judged(SCHEMA, order(2))), instructions(judged(SCHEMA, order(102)))
    print(f"an order of two items: {two} instructions, each item {(many - two) / 100:.0f}")
    assert two <= 1_350
    assert (many - two) / 100 <= 310
