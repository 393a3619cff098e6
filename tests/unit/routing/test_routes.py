"""Routes as plans: patterns, destinations, and the ids that distinguish two copies of a message."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.routing.route_plans import RoutePlan, compile_routes, routes_for
from router_trio.settings import Settings
from tests.support.world import core, stream


def plans(*routes: dict[str, Any], connections: tuple[str, ...] = ("main",)) -> list[RoutePlan]:
    config = Settings(
        connections={name: {"servers": ["nats://127.0.0.1:4222"]} for name in connections}, routes=list(routes)
    )
    return compile_routes(config)


def to(subject: str, connection: str = "main", *, jetstream: bool = True) -> dict[str, Any]:
    return {"subject": subject, "connection": connection, "jetstream": jetstream}


def test_a_plan_has_the_source_and_the_destinations_of_its_route() -> None:
    local, remote = to("a.{{wildcard(2)}}", jetstream=False), to("b.{{wildcard(1)}}", "edge")
    (plan,) = plans(core("orders.*.*", local, remote, connection="main"), connections=("main", "edge"))
    assert (plan.name, plan.connection, plan.pattern, plan.stream) == ("route", "main", "orders.*.*", None)
    assert plan.connections == {"main", "edge"}
    first, second = plan.destinations
    assert (first.connection, first.template, first.waits_for_puback) == ("main", "a.{{wildcard(2)}}", False)
    assert (second.connection, second.template, second.waits_for_puback) == ("edge", "b.{{wildcard(1)}}", True)
    assert first.mapping.apply("orders.eu.7") == "a.7"
    assert second.mapping.apply("orders.eu.7") == "b.eu"


def test_the_pattern_of_a_stream_is_its_filter_or_everything() -> None:
    filtered, whole = plans(stream("A", "x.{{wildcard(1)}}", route="one", filter="a.*"), stream("B", "y", route="two"))
    assert (filtered.pattern, filtered.stream) == ("a.*", "A")
    assert (whole.pattern, whole.stream) == (">", "B")
    assert whole.destinations[0].mapping.apply("any.subject.at.all") == "y"


def test_the_id_of_a_copy_depends_only_on_route_and_subject() -> None:
    def copies(*routes: Any) -> dict[tuple[str, str, str], bytes]:
        found = plans(*routes, connections=("main", "edge"))
        return {
            (plan.name, to.connection, to.template): to.copy_id(to.template.encode())
            for plan in found
            for to in plan.destinations
        }

    first = core("a", to("a1"), to("a2"), to("a1", "edge"), name="first", connection="main")
    second = core("b", to("a1", "edge"), name="second", connection="main")
    ids = copies(first, second)
    assert ids["first", "main", "a1"] == ids["first", "edge", "a1"], "the connection makes no difference"
    assert len(set(ids.values())) == 3
    # The order, the neighbours and the source make no difference.
    alone = copies(core("c", to("a1"), name="second", connection="main"))
    assert alone["second", "main", "a1"] == ids["second", "edge", "a1"]


@pytest.mark.parametrize("strategy", ["all", "first_match", "weighted", "sticky", "fallback"])
def test_copies_of_one_message_for_one_subject_have_different_ids(strategy: str) -> None:
    """A strategy that chooses one destination makes one copy, whose id does not depend on the choice."""
    when = {"when": "size > 0"} if strategy == "first_match" else {}
    real, mirror = to("a1") | when, to("a1") | {"mirror": 0.5}
    key = {"key": "subject"} if strategy == "sticky" else {}

    def ids(*destinations: dict[str, Any]) -> list[bytes]:
        (plan,) = plans(
            core("a", *destinations, name="one", connection="main") | {"strategy": strategy, **key},
            connections=("main", "edge"),
        )
        return [one.copy_id(b"a1") for one in plan.destinations]

    (plan,) = plans(core("a", to("a1"), name="one"))
    alone = plan.destinations[0].copy_id(b"a1")
    mirrored, first, second, other = ids(mirror, real, real, to("a1", "edge"))
    assert first == alone == other, "what had no other copy of its subject has the id that it always had"
    assert (second == first) is (strategy != "all")
    assert mirrored not in (first, second)
    (plan,) = plans(core("a", to("a1"), to("a2"), name="one"))
    assert [one.number for one in plan.destinations] == [0, 0]


def test_a_random_subject_does_not_make_another_copy() -> None:
    (plan,) = plans(core("a.*", to("b.{{random(9)}}"), name="one"))
    (destination,) = plan.destinations
    assert destination.copy_id(b"b.1") == destination.copy_id(b"b.2")


def test_the_routes_of_a_subject_are_found_in_order() -> None:
    found = plans(core("a.*.c", "x", name="one"), core("a.*", "y", name="two"), stream("S", "z", route="three"))
    assert [plan.name for plan in routes_for(found, "a.b")] == ["two", "three"]
    assert [plan.name for plan in routes_for(found, "a.b.c")] == ["one", "three"]
    assert [plan.name for plan in routes_for(found, "q")] == ["three"]


def test_handlers_are_given_by_the_name_of_their_route() -> None:
    def handle(message: object) -> object:
        return message

    config = Settings(
        connections={"main": {"servers": ["nats://127.0.0.1:4222"]}},
        routes=[core("a", "x", name="one"), core("b", "y", name="two")],
    )
    one, two = compile_routes(config, {"two": handle})
    assert (one.handler, two.handler) == (None, handle)
