"""Each message of supervisors and workers arrives as it was sent, with every kind of value that its types allow.

The messages are made from the annotations of their fields, so that a new field and a new message are tested as well.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import trio

from router_trio.router.workers.messages import ToSupervisor, ToWorker
from router_trio.router.workers.process import of_worker
from router_trio.settings import Settings
from router_trio.telemetry.tap.tap import TapRefused
from tests.unit.router.workers.test_channel import pair

EXAMPLES = Path(__file__).parents[4] / "examples"

PLAIN: dict[Any, list[Any]] = {
    Any: [{"entry": [1, None, "text", {"nested": 0.5}]}],
    Settings: [
        of_worker(Settings.load(EXAMPLES / f"{name}.toml")) for name in ("route_by_content", "require_a_schema")
    ],
    TapRefused: [TapRefused(404, "there is no route")],
    bool: [True, False],
    float: [0.5, float("inf")],
    int: [0, -1, 2**70],
    str: ["", "line\n\N{SNOWMAN}", "\udc80"],  # the last one is of a subject that is not UTF-8
    type(None): [None],
}
"""Values of the types that have no parts."""

COLLECTIONS = {Counter: Counter, Mapping: dict, Sequence: list, dict: dict, frozenset: frozenset, list: list}


def values(kind: Any) -> list[Any]:
    """Return values of a type: of each member of a union, and of each field; empty and full collections."""
    if kind in PLAIN:
        return PLAIN[kind]
    origin: Any = get_origin(kind) or kind
    parts = get_args(kind)
    if origin in (Union, types.UnionType):
        return [value for part in parts for value in values(part)]
    if is_dataclass(origin):
        hints, names = get_type_hints(origin), [one.name for one in fields(origin)]
        return [kind(*chosen) for chosen in in_turn([hints[name] for name in names])]
    if hasattr(origin, "_fields"):
        return [origin(*chosen) for chosen in in_turn([*get_type_hints(origin).values()])]
    if origin is tuple:
        return [(), (*values(parts[0]),)] if parts[1:] == (...,) else in_turn(parts)
    assert origin in COLLECTIONS, f"{kind} can't be sent, or this test does not know it yet"
    made = COLLECTIONS[origin]
    if origin is Counter:
        return [made(), made(values(parts[0]))]
    return [made(), made(in_turn(parts) if len(parts) > 1 else values(parts[0]))]


def in_turn(kinds: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return tuples with values of these types. Each value of each type is in one of them."""
    found = [values(kind) for kind in kinds]
    most = max(map(len, found), default=1)
    return [tuple(one[number % len(one)] for one in found) for number in range(most)]


def same(sent: Any, received: Any) -> bool:
    """Return True if both are equal. Errors have no equality of their own."""
    return type(sent) is type(received) and (sent == received or repr(sent) == repr(received))


@pytest.mark.parametrize("kind", [*get_args(ToWorker), *get_args(ToSupervisor)], ids=lambda kind: kind.__name__)
async def test_a_message_arrives_as_it_was_sent(kind: type) -> None:
    messages = values(kind)
    ours, theirs, _ = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.write)
        with trio.fail_after(5):
            for message in messages:
                ours.post(message)
                assert same(message, await theirs.next_message())
        nursery.cancel_scope.cancel()


def test_messages_have_each_value_of_each_field() -> None:
    """Otherwise the test above could send next to nothing."""
    reported = next(kind for kind in get_args(ToSupervisor) if kind.__name__ == "Reported")
    routes = [route for one in values(reported) for route in one.report.routes]
    assert {type(route.last_failure).__name__ for route in routes} == {"LastFailure", "NoneType"}
    assert any(route.partitions is not None and route.partitions.lag for route in routes)
    assert any(route.exemplars and route.behind and route.to and route.breakers for route in routes)
