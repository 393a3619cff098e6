"""Circles of routes: which are refused, which are warned about, and which are neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from router_trio.settings.checks import circles
from router_trio.settings.checks.circles import CircleSearch, certain_circles, possible_circles
from tests.unit.settings.problems import problems

ONE = "nats://127.0.0.1:4222"
TWO = "nats://127.0.0.1:4223"


def route(name: str, source: str | dict[str, Any], *to: str | dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Return a route; a source or destination given as text is a subject on the connection `main`."""
    given = {"subject": source} if isinstance(source, str) else source
    ends = [{"subject": one} if isinstance(one, str) else one for one in to]
    main = {"connection": "main"}
    return {"name": name, "from": main | given, "to": [main | one for one in ends], **keys}


def chain(*steps: tuple[str, str]) -> list[dict[str, Any]]:
    """Return routes on one connection, named a, b, c, ..."""
    return [route("abcdef"[index], source, to) for index, (source, to) in enumerate(steps)]


def found(routes: list[dict[str, Any]], **more: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return what is refused, by the settings or by `check`, and if nothing is, what is warned about."""
    connections = more.pop("connections", {"main": {"servers": [ONE]}})
    try:
        settings = Settings(connections=connections, routes=routes, **more)
    except ConfigurationError:
        return problems(lambda: Settings(connections=connections, routes=routes, **more)), {}
    whole = (settings.connections, settings.routes, settings.streams)
    refused = {one.path: one.message for one in certain_circles(*whole)}
    return refused, {} if refused else {one.path: one.message for one in possible_circles(*whole)}


SURE = [
    chain(("a", "b"), ("b", "a")),
    chain(("a.*", "b.$1"), ("b.*", "a.$1")),
    chain(("a.>", "b.>"), ("b.>", "a.>")),
    chain(("a.*", "b.$1"), ("b.*", "c.$1"), ("c.*", "a.$1")),
    chain(("a.eu", "b.eu"), ("b.*", "a.$1")),
    chain(("a.>", "b"), ("b", "a.x")),
    chain(("a.>", "b.x.>"), ("b.>", "a.>")),  # the subject grows in each round
    chain(("a.*.*", "b.$2.$1"), ("b.*.*", "a.$1.$2")),
    [route("a", "a", "x", "b"), route("b", "b", "a")],
    [route("a", "a", "b", strategy="first_match"), route("b", "b", "a")],
    [route("a", {"stream": "S", "durable": "d", "filter": ["x", "a.*"]}, "b"), route("b", "b", "a.z")],
]


@pytest.mark.parametrize("routes", SURE)
def test_a_certain_circle_is_refused(routes: list[dict[str, Any]]) -> None:
    refused, _ = found(routes)
    assert len(refused) == 1
    assert "messages of route 'a' return to it" in next(iter(refused.values()))
    for one in routes:
        limited = [other | {"hop_limit": 3} if other is one else other for other in routes]
        assert found(limited) == ({}, {}), "a limit on one of them is enough"


def test_a_refused_circle_is_described_with_its_path_and_the_cure() -> None:
    refused, _ = found(chain(("in.*", "mid.$1"), ("mid.*", "out.$1"), ("out.>", "in.x")))
    assert refused == {
        "routes[0].to[0].subject": "messages of route 'a' return to it: it sends 'mid.x' to route 'b', which sends "
        "'out.x' to route 'c', which sends 'in.x' to route 'a'; send to other subjects, narrow a source, or set "
        "hop_limit on one of these routes"
    }


MAYBE = [
    [route("a", "a", "b", when="size > 7"), route("b", "b", "a")],
    [route("a", "a", {"subject": "b", "when": "size > 7"}), route("b", "b", "a")],
    [route("a", "a", "b", handler="m:f"), route("b", "b", "a")],
    [route("a", "a", "b", "c", strategy="weighted"), route("b", "b", "a")],
    [route("a", "a", "c", {"subject": "b", "mirror": 0.5}), route("b", "b", "a")],
    chain(("a.*", "b.{{split(1,-)}}"), ("b.*.*", "a.$1")),
    chain(("a.*", "b.{{partition(3,1)}}"), ("b.1", "a.x")),
    chain(("a.*", "b.{{random(3)}}"), ("b.*", "a.x")),
    [route("a", "a", "b"), route("b", "b", "z", dead_letter={"subject": "a"})],
]


@pytest.mark.parametrize("routes", MAYBE)
def test_a_possible_circle_is_warned_about(routes: list[dict[str, Any]]) -> None:
    refused, warned = found(routes)
    assert refused == {}
    assert len(warned) == 1
    assert "messages of route 'a' may return to it" in next(iter(warned.values()))
    assert found([routes[0] | {"hop_limit": 3}, *routes[1:]]) == ({}, {})


NEITHER = [
    chain(("a", "b"), ("b", "c")),
    chain(("a.eu", "b.x"), ("b.*", "a.$1")),  # it returns as a.x
    chain(("a.*", "b.eu.$1"), ("b.us.*", "a.$1")),
    chain(("a.*", "b.$1"), ("b.*.*", "a.$1")),
    chain(("a.*", "b.$1"), ("b.*", "c.$1"), ("c.eu", "d"), ("d", "e")),
    [route("a", {"stream": "S", "durable": "d"}, "b"), route("b", "b", "a")],  # the subjects of S are unknown
]


@pytest.mark.parametrize("routes", NEITHER)
def test_routes_without_a_circle_are_accepted_without_a_warning(routes: list[dict[str, Any]]) -> None:
    assert found(routes) == ({}, {})


@pytest.mark.parametrize(
    ("main", "edge", "expected"),
    [
        ({"servers": [ONE]}, {"servers": [TWO]}, "neither"),
        ({"servers": [ONE]}, {"servers": [TWO, ONE]}, "sure"),
        ({"servers": [ONE]}, {"servers": ["NATS://127.0.0.1"]}, "sure"),
        ({}, {}, "sure"),  # both use the embedded server
        ({"servers": [ONE]}, {}, "neither"),
        ({"servers": [ONE]}, {"servers": [ONE], "token": "t"}, "maybe"),
        ({"servers": [ONE]}, {"servers": ["nats://t@127.0.0.1:4222"]}, "maybe"),
        ({"servers": [ONE], "user": "u", "password": "p"}, {"servers": [ONE], "user": "u", "password": "p"}, "sure"),
    ],
)
def test_connections_to_the_same_server_count_as_one(main: dict[str, Any], edge: dict[str, Any], expected: str) -> None:
    there = route("there", "in.*", {"connection": "edge", "subject": "in.$1"})
    connections = {"main": main, "edge": edge}
    # On one server such a route feeds itself, and a pair of such routes each other.
    refused, warned = found([there], connections=connections)
    assert (len(refused), len(warned)) == {"sure": (1, 0), "maybe": (0, 1), "neither": (0, 0)}[expected]
    back = route("back", {"connection": "edge", "subject": "out.*"}, "in.$1")
    out = route("out", "in.*", {"connection": "edge", "subject": "out.$1"})
    refused, warned = found([out, back], connections=connections)
    if expected == "neither":
        # `back` reads on `edge` what `out` has sent there, and sends it to `main`.
        assert (len(refused), len(warned)) == (1, 0)


def test_routes_between_two_servers_and_back_are_a_circle() -> None:
    there = route("a", "in.*", {"connection": "edge", "subject": "in.$1"})
    back = route("b", {"connection": "edge", "subject": "in.*"}, "in.$1")
    refused, _ = found([there, back], connections={"main": {"servers": [ONE]}, "edge": {"servers": [TWO]}})
    assert set(refused) == {"routes[0].to[0].subject"}


def test_the_subjects_of_a_stream_are_known_if_the_configuration_creates_it() -> None:
    routes = [route("a", {"stream": "S", "durable": "d"}, "b"), route("b", "b", "s.x")]
    streams = [{"connection": "main", "name": "S", "subjects": ["s.>"]}]
    refused, _ = found(routes, streams=streams)
    assert set(refused) == {"routes[0].to[0].subject"}
    assert found(routes, streams=[streams[0] | {"subjects": ["t.>"]}]) == ({}, {})


def test_each_circle_is_found_once() -> None:
    refused, _ = found(chain(("a", "b"), ("b", "a"), ("c.>", "d.>"), ("d.>", "c.>")))
    assert set(refused) == {"routes[0].to[0].subject", "routes[2].to[0].subject"}


def test_a_certain_circle_is_found_behind_a_possible_one() -> None:
    routes = [route("a", "a", "b", when="size > 7"), route("b", "b", "c"), route("c", "c", "a", "b")]
    refused, _ = found(routes)
    assert set(refused) == {"routes[1].to[0].subject"}


def test_settings_accept_routes_in_a_circle() -> None:
    assert Settings(connections={"main": {"servers": [ONE]}}, routes=chain(("a", "b"), ("b", "a"))).routes


def test_many_routes_are_checked_quickly() -> None:
    routes = [route(f"r{number}", f"in.{number}.*", f"in.{number + 1}.$1") for number in range(300)]
    assert found(routes) == ({}, {})
    refused, _ = found([*routes, route("last", "in.300.*", "in.0.$1")])
    message = refused.pop("routes[0].to[0].subject")
    assert not refused
    assert "to route 'r7', which sends on over 293 more, and the last one sends 'in.0.*' to route 'r0'" in message


MANY: dict[str, Callable[[int, int], tuple[str, str]]] = {
    "a chain": lambda i, n: (f"in.{i}.*", f"in.{i + 1}.$1"),
    "a ring": lambda i, n: (f"in.{i}.*", f"in.{(i + 1) % n}.$1"),
    "pairs that lead on": lambda i, n: (f"p{i}", f"p{i - 1 if i % 2 else i + 1}"),
    "rings that share a token": lambda i, n: (f"*.x{i}", f"$1.x{(i + 1) % n}"),
    "tokens that change places": lambda i, n: (f"t{i}.*.in", f"$1.t{i}.out"),
    "half to half": lambda i, n: (f"{'ab'[i % 2]}.s{i}.*", f"{'ba'[i % 2]}.$1.{i}"),
    "one to all": lambda i, n: ("in.*", f"out.{i}.$1"),
}


@pytest.mark.parametrize("name", MANY)
def test_the_search_grows_with_the_routes_and_not_with_their_square(name: str) -> None:
    def looked_at(number: int) -> int:
        routes = [
            route(f"r{i}", *MANY[name](i, number), when="size > 7" if i % 50 == 0 else None) for i in range(number)
        ]
        settings = Settings(connections={"main": {"servers": [ONE]}}, routes=routes)
        search = CircleSearch(settings.connections, settings.routes, settings.streams, certain=False)
        list(search.problems())
        return search.looked_at

    few, many = looked_at(100), looked_at(400)
    if name in ("tokens that change places", "half to half"):
        assert few > 100 * 25, "each of them is compared with each other, up to a bound"
    else:
        assert many <= 4.5 * few


def test_a_search_that_is_cut_short_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circles, "MOST_LOOKS", 10_000)
    refused, warned = found([route(f"r{i}", *MANY["half to half"](i, 400), when="size > 7") for i in range(400)])
    assert refused == {}
    assert warned["routes"].startswith("too many lead to each other to follow all ways, so a circle may")


# --- a route without a filter ----------------------------------------------------------------------------------------

WHOLE = {"stream": "S", "durable": "d"}


def stream(*subjects: str, name: str = "S", connection: str = "main") -> dict[str, Any]:
    """Return a stream that the configuration creates."""
    return {"connection": connection, "name": name, "subjects": list(subjects)}


FED = [
    (["s.>"], "s.copy"),
    (["s.>"], "s.>"),
    (["s.>"], ">"),
    (["a", "b.*"], "b.x"),
    (["s.*.x", "t"], "s.{{random(3)}}.x"),
    (["s.*"], "s.{{partition(3)}}"),
    (["copy.*.raw", "x.raw"], "copy.>"),  # x.raw returns as copy.x.raw
]


@pytest.mark.parametrize(("subjects", "destination"), FED)
@pytest.mark.parametrize("keys", [{}, {"when": "size > 7"}, {"handler": "m:f"}, {"strategy": "weighted"}])
def test_a_route_without_a_filter_from_a_stream_that_takes_what_it_sends_is_refused(
    subjects: list[str], destination: str, keys: dict[str, Any]
) -> None:
    fed = route("a", WHOLE, "elsewhere", destination, **keys)
    refused, _ = found([fed], streams=[stream(*subjects)])
    assert set(refused) == {"routes[0].to[1].subject"}
    assert "so the route would feed itself" in refused["routes[0].to[1].subject"]
    # An intended loop is declared with a hop limit.
    assert found([fed | {"hop_limit": 3}], streams=[stream(*subjects)])[0] == {}


def test_a_route_that_feeds_itself_is_described_with_its_stream_and_the_cure() -> None:
    routes = [route("copy", WHOLE, {"subject": "s.copy", "jetstream": False})]
    refused, _ = found(routes, streams=[stream("other", name="T"), stream("s.>")])
    assert refused == {
        "routes[0].to[0].subject": "'s.copy' is taken by the stream 'S' (streams[1]), and route 'copy' reads all of "
        "it, so the route would feed itself; send to other subjects, set `filter` to the subjects that it should "
        "read, or set hop_limit if it is intended"
    }


def test_dead_letters_that_return_to_a_stream_read_without_a_filter_are_refused() -> None:
    letters = route("a", WHOLE, "elsewhere", dead_letter={"subject": "s.dead"})
    # Hops of dead letters are not counted, so no limit ends them.
    for one in (letters, letters | {"hop_limit": 3}):
        refused, _ = found([one], streams=[stream("s.>")])
        assert set(refused) == {"routes[0].dead_letter.subject"}
        assert "hop_limit" not in refused["routes[0].dead_letter.subject"]
    elsewhere = letters | {"dead_letter": {"connection": "main", "subject": "dead.s"}}
    assert found([elsewhere], streams=[stream("s.>")]) == ({}, {})


NOT_FED = [
    (["s.>"], WHOLE, "copy.>"),
    (["*.raw"], WHOLE, "copy.>"),  # it is sent as copy.y.raw
    (["s.>"], WHOLE, "s"),
    (["s.>"], WHOLE | {"filter": "s.in"}, "s.out"),
    (["s.>"], WHOLE | {"filter": ["s.in.*", "s.too"]}, "s.out"),
    (["s.*.x"], WHOLE, "{{partition(3)}}.a.x"),  # a number is no s
    (["x.*.raw"], WHOLE, "x.>"),  # it is sent as x.x.y.raw
    (["s.>"], WHOLE | {"stream": "T"}, "s.out"),
]


@pytest.mark.parametrize(("subjects", "source", "destination"), NOT_FED)
def test_a_route_that_its_stream_does_not_feed_is_accepted(
    subjects: list[str], source: dict[str, Any], destination: str
) -> None:
    dead = {"dead_letter": {"subject": destination}}
    assert found([route("a", source, "x", destination, **dead)], streams=[stream(*subjects)]) == ({}, {})


@pytest.mark.parametrize(
    ("edge", "expected"),
    [
        ({"servers": [ONE]}, "sure"),
        ({"servers": [TWO]}, "neither"),
        ({"servers": [ONE], "domain": "leaf"}, "neither"),
        ({"servers": [ONE], "token": "t"}, "neither"),
    ],
)
def test_a_stream_of_another_connection_to_the_same_server_is_known(edge: dict[str, Any], expected: str) -> None:
    connections = {"main": {"servers": [ONE]}, "edge": edge}
    fed = route("a", WHOLE, "s.copy")
    refused, warned = found([fed], connections=connections, streams=[stream("s.>", connection="edge")])
    assert (len(refused), len(warned)) == {"sure": (1, 0), "neither": (0, 0)}[expected]


def test_a_stream_fed_over_another_connection_to_its_server_is_a_circle() -> None:
    connections = {"main": {"servers": [ONE]}, "edge": {"servers": [ONE]}}
    fed = route("a", WHOLE, {"connection": "edge", "subject": "s.copy"})
    refused, _ = found([fed], connections=connections, streams=[stream("s.>")])
    assert "messages of route 'a' return to it" in refused["routes[0].to[0].subject"]


def test_two_routes_over_two_streams_read_without_a_filter_are_a_circle() -> None:
    routes = [route("a", WHOLE, "t.>"), route("b", WHOLE | {"stream": "T"}, "s.>")]
    streams = [stream("s.>"), stream("t.>", name="T")]
    refused, _ = found(routes, streams=streams)
    message = refused["routes[0].to[0].subject"]
    assert "messages of route 'a' return to it" in message
    assert ".s.>' to route 'b', which sends 's.t." in message
    for index in (0, 1):
        limited = [one | {"hop_limit": 3} if number == index else one for number, one in enumerate(routes)]
        assert found(limited, streams=streams) == ({}, {})


def test_a_message_from_a_stream_read_without_a_filter_keeps_its_entire_subject() -> None:
    routes = [route("in", "in.*", "s.$1"), route("a", WHOLE, "copy.>"), route("b", "copy.s.*", "in.$1")]
    refused, _ = found(routes, streams=[stream("s.>")])
    assert set(refused) == {"routes[0].to[0].subject"}
    routes[2] = route("b", "copy.x.*", "in.$1")
    assert found(routes, streams=[stream("s.>")]) == ({}, {})


def test_no_hop_limit_of_a_route_ends_a_circle_of_its_dead_letters() -> None:
    routes = [route("a", "a", "z", dead_letter={"subject": "b"}, hop_limit=3), route("b", "b", "a")]
    refused, warned = found(routes)
    assert refused == {}
    assert "set hop_limit on route 'b'" in warned["routes[0].dead_letter.subject"]
    assert found([routes[0], routes[1] | {"hop_limit": 3}]) == ({}, {})
