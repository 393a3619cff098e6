"""Values that are valid alone and impossible together: ways to log in, names, consumers, loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from tests.support.certificates import create_certificates
from tests.support.credentials import create_operator, user_nkey
from tests.unit.settings.problems import MAIN, Load, one_route, problems, route


def test_a_configuration_without_connections_is_refused_with_the_cure() -> None:
    found = problems(lambda: Settings(routes=[route(from_subject="in", from_connection="main")]))
    assert set(found) == {"connections"}
    assert problems(Settings) == found
    assert "add [connections.main] with servers = ['nats://127.0.0.1:4222']" in found["connections"]


@pytest.mark.parametrize("name", ["a.b", "a b", "", "a__b", "ä"])
def test_a_connection_name_must_be_usable_as_a_key(name: str) -> None:
    found = problems(lambda: Settings(connections={name: {}}))
    assert "give it another name" in found[f"connections.{name}"]


def test_missing_servers_are_found_by_require_servers(load: Load, tmp_path: Path) -> None:
    settings = load('[connections.a]\nservers = ["host"]\n[connections.b]\n')
    with pytest.raises(ConfigurationError) as caught:
        settings.require_servers()
    [problem] = caught.value.problems
    assert problem.path == "connections.b.servers"
    assert "or run with --embedded-nats; other commands then need the URL of that server" in problem.message
    assert caught.value.source == str(tmp_path / "router.toml")
    Settings(connections=MAIN).require_servers()


@pytest.mark.parametrize(
    ("connection", "found"),
    [
        ({"user": "a", "password": "b", "token": "c"}, {"user": "token and user exclude each other"}),
        ({"token": "c", "servers": ["nats://t@host"]}, {"servers": "token and the user part of a server's URL"}),
        ({"user": "a"}, {"password": "missing; a user needs a password"}),
        ({"password": "a"}, {"user": "missing; a password needs a user"}),
        ({"nkey_seed_file": "/nowhere/seed"}, {"nkey_seed_file": "there is no file '/nowhere/seed'"}),
        ({"credentials_file": "/"}, {"credentials_file": "there is no file '/'"}),
        ({"domain": "hub", "api_prefix": "JS.hub.API"}, {"api_prefix": "domain and api_prefix exclude each other"}),
        ({"domain": "a.b"}, {"domain": "'a.b' contains '.', which NATS does not allow"}),
        ({"api_prefix": "JS.*.API"}, {"api_prefix": "api_prefix 'JS.*.API' has the wildcard '*'"}),
        ({"api_prefix": "JS.API."}, {"api_prefix": "api_prefix 'JS.API.' has an empty token"}),
        ({"tls_ca_file": "/nowhere/\0"}, {"tls_ca_file": "there is no file"}),
        ({"tls_ca_file": "x" * 300}, {"tls_ca_file": f"'{'x' * 300}' can't be accessed (File name too long)"}),
    ],
)
def test_contradictions_of_a_connection_are_refused(connection: dict[str, Any], found: dict[str, str]) -> None:
    actual = problems(lambda: Settings(connections={"main": connection}))
    assert set(actual) == {f"connections.main.{key}" for key in found}
    for key, message in found.items():
        assert actual[f"connections.main.{key}"].startswith(message)


def test_each_further_way_to_authenticate_is_refused(tmp_path: Path) -> None:
    file, seed = create_operator().credentials(tmp_path / "user.creds"), tmp_path / "user.nk"
    seed.write_text(user_nkey().seed)
    connection = {"credentials_file": file, "nkey_seed_file": seed, "token": "t"}
    found = problems(lambda: Settings(connections={"main": connection}))
    assert set(found) == {"connections.main.nkey_seed_file", "connections.main.token"}


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_certificate_and_key_need_each_other(given: str, missing: str, tmp_path: Path) -> None:
    pair = create_certificates(tmp_path).client
    file = pair.certificate if given == "cert" else pair.key
    found = problems(lambda: Settings(connections={"main": {f"tls_{given}_file": file}}))
    assert set(found) == {f"connections.main.tls_{missing}_file"}
    assert found[f"connections.main.tls_{missing}_file"].startswith("missing")


def test_a_route_must_name_one_of_several_connections() -> None:
    found = problems(lambda: Settings(connections={"a": {}, "b": {}}, routes=[route()]))
    cure = "missing; there are several connections, name one of 'a', 'b'"
    assert found == {"routes[0].from.connection": cure, "routes[0].to[0].connection": cure}


def test_unknown_connection_gets_the_nearest_name() -> None:
    to = [{"subject": "out", "connection": "mian"}]
    found = problems(one_route(from_subject="in.*", from_connection="Main", to=to))
    assert found == {
        "routes[0].from.connection": "there is no connection 'Main'; did you mean 'main'?",
        "routes[0].to[0].connection": "there is no connection 'mian'; did you mean 'main'?",
    }


def test_route_names_are_unique() -> None:
    routes = [route(), route(name="b"), route()]
    found = problems(lambda: Settings(connections=MAIN, routes=routes))
    assert found == {"routes[2].name": "'r' is the name of routes[0] already; choose another"}


def test_two_routes_must_not_share_a_consumer() -> None:
    source = {"stream": "S", "durable": "d", "filter": "in.*"}
    routes = [route(name=name) | {"from": source} for name in "ab"]
    found = problems(lambda: Settings(connections=MAIN, routes=routes))
    assert set(found) == {"routes[1].from.durable"}
    other = route(name="c") | {"from": source | {"durable": "e"}}
    assert len(Settings(connections=MAIN, routes=[routes[0], other]).routes) == 2


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ({"queue": "q"}, {"": "names no source; give a subject, or a stream and a durable"}),
        ({"subject": "a", "stream": "S", "durable": "d"}, {".subject": "can't be combined with a stream"}),
        ({"stream": "S", "durable": "d", "queue": "q"}, {".queue": "can't be combined with a stream"}),
        ({"stream": "S"}, {".durable": "missing; name the durable consumer"}),
        ({"subject": "a", "durable": "d"}, {".durable": "is only for a stream"}),
        ({"subject": "a", "filter": "b"}, {".filter": "is only for a stream"}),
        ({"subject": "a", "ack_wait": "1s"}, {".ack_wait": "is only for a stream"}),
        ({"subject": "a", "max_in_flight": 1}, {".max_in_flight": "is only for a stream"}),
        ({"subject": "a", "max_in_flight_bytes": "1MiB"}, {".max_in_flight_bytes": "is only for a stream"}),
        ({"subject": "a", "max_deliver": 5}, {".max_deliver": "is only for a stream"}),
        ({"subject": "a", "nak_delay": "2s"}, {".nak_delay": "is only for a stream"}),
        ({"subject": "a..b"}, {".subject": "subject 'a..b'"}),
        ({"subject": ""}, {".subject": "subject"}),
        ({"subject": "a.>.b"}, {".subject": "subject 'a.>.b'"}),
        ({"stream": "S", "durable": "d", "filter": "a b"}, {".filter": "filter 'a b'"}),
        ({"stream": "S.1", "durable": "d"}, {".stream": "'S.1' contains '.'"}),
        ({"stream": "S", "durable": "d*"}, {".durable": "'d*' contains '*'"}),
        ({"subject": "a", "queue": "q q"}, {".queue": "'q q' contains ' '"}),
    ],
)
def test_contradictions_of_a_source_are_refused(source: dict[str, Any], found: dict[str, str]) -> None:
    actual = problems(lambda: Settings(connections=MAIN, routes=[route() | {"from": source}]))
    assert set(actual) == {f"routes[0].from{key}" for key in found}
    for key, message in found.items():
        assert actual[f"routes[0].from{key}"].startswith(message)


def test_an_impossible_mapping_is_refused() -> None:
    to = [{"subject": "out.{{wildcard(1)}}"}, {"subject": "out.{{wildcard(2)}}"}, {"subject": "out.{{nothing(1)}}"}]
    found = problems(one_route(to=to))
    assert set(found) == {"routes[0].to[1].subject", "routes[0].to[2].subject"}
    assert "out of range" in found["routes[0].to[1].subject"]


def test_a_mapping_without_a_filter_starts_from_every_subject() -> None:
    assert one_route(from_stream="S", from_durable="d", to=[{"subject": "archive.>"}])()
    to = [{"subject": "archive.{{wildcard(1)}}"}]
    found = problems(one_route(from_stream="S", from_durable="d", to=to))
    assert set(found) == {"routes[0].to[0].subject"}


def test_each_of_several_filters_must_fit_the_destination() -> None:
    stream = {"from_stream": "S", "from_durable": "d"}
    assert one_route(**stream, from_filter=["a.*", "b.*.c"], to=[{"subject": "out.{{wildcard(1)}}"}])()
    assert one_route(**stream, from_filter=["a.*", "b.>"], to=[{"subject": "one"}])()
    found = problems(one_route(**stream, from_filter=["a.*", "b"], to=[{"subject": "out.{{wildcard(1)}}"}]))
    assert set(found) == {"routes[0].to[0].subject"}
    assert "the source 'b' has none" in found["routes[0].to[0].subject"]
    found = problems(one_route(**stream, from_filter=["a.*", "b.*"], to=[{"subject": "b.x"}]))
    assert "'b.x' can match the route's own source 'b.*'" in found["routes[0].to[0].subject"]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], {"": "must have at least one entry; without `filter` the whole stream is read"}),
        (7, {"": "must be text in quotes, or a list of texts"}),
        (["a", 7], {"": "must be text in quotes, or a list of texts"}),
        (["a.>", "b", "a.*"], {"[2]": "'a.*' overlaps with filter[0], 'a.>', which nats-server refuses"}),
        (["a..b", "*.*"], {"[0]": "filter 'a..b' has an empty token"}),
        ("a..b", {"": "filter 'a..b' has an empty token"}),
    ],
)
def test_bad_filters_are_refused(filters: object, found: dict[str, str]) -> None:
    actual = problems(one_route(from_stream="S", from_durable="d", from_filter=filters))
    assert set(actual) == {f"routes[0].from.filter{key}" for key in found}
    for key, message in found.items():
        assert actual[f"routes[0].from.filter{key}"].startswith(message)


@pytest.mark.parametrize("text", ["enrich", "orders.enrich", "orders:", ":enrich", "a-b:c", "a..b:c", "a:b:c", "a b:c"])
def test_bad_handler_is_refused(text: str) -> None:
    found = problems(one_route(handler=text))
    assert found == {"routes[0].handler": f"{text!r} is not of the form 'package.module:function'"}


@pytest.mark.parametrize("text", ["orders:enrich", "my_orders.handlers:enrich", "a.b:Class.method"])
def test_good_handler_is_not_imported(text: str) -> None:
    assert one_route(handler=text)().routes[0].handler == text


LOOPS = [
    ("orders.*", "orders.eu"),
    ("orders.>", "orders.>"),
    ("orders.>", "orders.copy.>"),
    ("orders.*.*", "orders.eu.{{wildcard(2)}}"),
    ("orders.*.*", "orders.$2.$1"),
    ("orders.*", "{{wildcard(1)}}.eu"),
    ("a.*.*", "a.{{split(1,-)}}"),
    ("a.*.*.*", "a.{{SliceFromLeft(1,2)}}.x"),
    ("a.*", "a.{{partition(3,1)}}"),
    ("a.1.*", "a.{{partition(3,1)}}.{{wildcard(1)}}"),
    ("orders", "orders"),
]
NO_LOOPS = [
    ("orders.*", "eu.orders"),
    ("orders.*", "orders.eu.{{wildcard(1)}}"),
    ("orders.>", "archive.>"),
    ("orders.*.*", "orders"),
    ("a.x.*", "a.{{partition(3,1)}}.{{wildcard(1)}}"),
    ("a.*", "a.x.{{split(1,-)}}"),
    ("a.*", "b.{{split(1,-)}}"),
]


@pytest.mark.parametrize("jetstream", [False, True])
@pytest.mark.parametrize(("source", "destination"), LOOPS)
def test_a_route_that_feeds_itself_is_refused_without_a_hop_limit(
    source: str, destination: str, jetstream: bool
) -> None:
    to = [{"subject": destination, "jetstream": jetstream}]
    for keys in ({"from_subject": source}, {"from_stream": "S", "from_durable": "d", "from_filter": source}):
        found = problems(one_route(to=to, **keys))
        assert set(found) == {"routes[0].to[0].subject"}
        assert "the route would feed itself" in found["routes[0].to[0].subject"]
        assert one_route(to=to, **keys, hop_limit=3)(), "an intended loop is declared with a hop limit"


@pytest.mark.parametrize(("source", "destination"), NO_LOOPS)
def test_a_route_that_does_not_feed_itself_is_accepted(source: str, destination: str) -> None:
    assert one_route(from_subject=source, to=[{"subject": destination}])()


@pytest.mark.parametrize(("source", "destination"), LOOPS)
def test_the_same_subjects_on_another_connection_are_no_loop(source: str, destination: str) -> None:
    there = {
        "name": "r",
        "from": {"connection": "main", "subject": source},
        "to": [{"connection": "other", "subject": destination}],
    }
    assert Settings(connections={**MAIN, "other": {}}, routes=[there])
