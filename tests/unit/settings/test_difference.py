"""The differences between two configurations, and what a reload would do about them."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio.cli.diff import lines
from router_trio.settings import Settings
from router_trio.settings.reload.difference import (
    Difference,
    Names,
    connections_of,
    difference,
    other_partitions,
)

Route = dict[str, Any]


def configuration(
    *routes: Route,
    connections: dict[str, dict[str, Any]] | None = None,
    streams: list[dict[str, Any]] | None = None,
    **sections: Any,
) -> Settings:
    made = {"main": {}} if connections is None else connections
    return Settings(connections=made, routes=list(routes), streams=streams or [], **sections)


def route(name: str, subject: str = "in.*", to: str = "out.$1", **rest: Any) -> Route:
    source = {"subject": subject, **rest.pop("source", {})}
    return {"name": name, "from": source, "to": [{"subject": to}], **rest}


def routes_between(old: Route, new: Route) -> Names:
    return difference(configuration(old), configuration(new)).routes


def partitioned(**source: Any) -> Settings:
    keys = {"stream": "S", "durable": "d", "filter": "in.*.*", "partitions": 4, "partition_by": [1]} | source
    given = {key: value for key, value in keys.items() if value is not None}
    return configuration({"name": "a", "from": given, "to": [{"subject": "out"}]})


def test_other_partitions_are_no_matter_of_a_reload() -> None:
    old = partitioned()
    changes: dict[str, Any]
    for changes in ({"partitions": 8}, {"partition_by": [2]}, {"partition_by": None}, {"filter": "in.*.new"}):
        (problem,) = other_partitions(old, partitioned(**changes))
        assert problem.path == "routes[0].from.partitions"
        assert "run `router-trio partitions CONFIG a --change --apply`" in problem.message
    none: dict[str, Any] = {"partitions": None, "partition_by": None}
    for before, after in ((old, partitioned(**none)), (partitioned(**none), old)):
        (problem,) = other_partitions(before, after)
        assert problem.message.endswith("use another durable")
    kept: dict[str, Any]
    for kept in ({}, {"ack_wait": "1m"}, {"partitions": 8, "durable": "e"}, none | {"durable": "e"}):
        assert list(other_partitions(old, partitioned(**kept))) == []
    assert list(other_partitions(old, configuration(route("b")))) == []


def keys(old: Settings, new: Settings) -> list[str]:
    found = difference(old, new)
    return [str(key) for names in (found.connections, found.routes) for one in names.changed for key in one.keys]


def test_a_configuration_does_not_differ_from_itself() -> None:
    same = configuration(route("a"), streams=[{"name": "S", "subjects": ["s.>"]}])
    found = difference(same, same)
    assert not found
    assert found.routes.unchanged == ("a",)
    assert found.connections.unchanged == ("main",)
    assert found.streams.unchanged == ("S on main",)


def test_routes_and_connections_of_one_side_only_are_added_or_removed() -> None:
    old = configuration(route("a"), route("b"), connections={"main": {}})
    new = configuration(
        route("c", source={"connection": "main"}, to="x") | {"to": [{"subject": "x", "connection": "main"}]},
        connections={"main": {}, "edge": {}},
    )
    found = difference(old, new)
    assert found.routes == Names(added=("c",), removed=("a", "b"))
    assert found.connections == Names(added=("edge",), unchanged=("main",))


def test_each_key_that_differs_is_named_with_both_values() -> None:
    old = configuration(route("a"), connections={"main": {"reconnect_delay": "1s"}})
    new = configuration(
        route("a", to="elsewhere.$1", limit={"rate": "500/s"}), connections={"main": {"reconnect_delay": "2500ms"}}
    )
    assert keys(old, new) == [
        'reconnect_delay: "1s" -> "2.5s"',
        'to[0].subject: "out.$1" -> "elsewhere.$1"',
        'limit.rate: not set -> "500/s"',
    ]


def test_a_default_that_is_spelled_out_is_no_difference() -> None:
    plain, written = configuration(route("a")), configuration(route("a", strategy="all", when=None))
    assert not difference(plain, written)
    named = route("a", source={"connection": "main"}) | {"to": [{"subject": "out.$1", "connection": "main"}]}
    assert not difference(plain, configuration(named))


def test_a_key_returned_to_its_default_shows_the_default() -> None:
    old, new = configuration(connections={"main": {"fail_open": True}}), configuration()
    assert keys(old, new) == ["fail_open: true -> false"]


def test_an_added_destination_is_shown_with_its_given_keys() -> None:
    two = route("a") | {"to": [{"subject": "out.$1"}, {"subject": "copy.$1", "jetstream": True}]}
    assert [str(key) for key in routes_between(route("a"), two).changed[0].keys] == [
        'to[1].connection: not set -> "main"',
        'to[1].subject: not set -> "copy.$1"',
        "to[1].jetstream: not set -> true",
    ]


def test_a_change_of_credentials_is_reported_without_showing_them() -> None:
    one, other = {"user": "u", "password": "old-secret"}, {"user": "u", "password": "new-secret"}
    old = configuration(connections={"main": one, "edge": {"servers": ["nats://a:one@h"]}, "third": {"token": "t1"}})
    new = configuration(connections={"main": other, "edge": {"servers": ["nats://a:two@h"]}, "third": {"token": "t2"}})
    hidden = "not shown -> not shown"
    assert keys(old, new) == [f"password: {hidden}", f"servers: {hidden}", f"token: {hidden}"]


def test_a_changed_proxy_scheme_or_header_is_a_changed_connection() -> None:
    def using(url: str, **more: Any) -> Settings:
        return configuration(connections={"main": {"servers": [url], **more}})

    hidden = "not shown -> not shown"
    headers, others = {"X-Key": "old-secret", "X-Two": "same"}, {"X-Key": "new-secret", "X-Two": "same"}
    for old, new, shown in (
        (using("nats://h"), using("ws://h"), 'servers: ["nats://h:4222"] -> ["ws://h:80"]'),
        (using("wss://h/a?key=1"), using("wss://h/a?key=2"), f"servers: {hidden}"),
        (using("ws://h", proxy="http://p"), using("ws://h"), 'proxy: "http://p:80" -> not set'),
        (using("ws://h", proxy="http://u:a@p"), using("ws://h", proxy="http://u:b@p"), f"proxy: {hidden}"),
        (
            using("ws://h", websocket_headers=headers),
            using("ws://h", websocket_headers=others),
            f"websocket_headers.X-Key: {hidden}",
        ),
    ):
        assert keys(old, new) == [shown]
        assert keys(old, old) == []


def test_a_route_whose_connection_changes_is_changed_too() -> None:
    both: dict[str, dict[str, Any]] = {"main": {}, "edge": {}, "third": {}}
    away = {"subject": "out.$1", "connection": "edge"}
    routes = [
        route("reads", source={"connection": "edge"}) | {"to": [{"subject": "x", "connection": "main"}]},
        route("sends", source={"connection": "main"}) | {"to": [away]},
        route("neither", source={"connection": "main"}) | {"to": [{"subject": "x", "connection": "main"}]},
    ]
    old = configuration(*routes, connections=both)
    new = configuration(*routes, connections=both | {"edge": {"connect_timeout": "1s"}})
    found = difference(old, new).routes
    assert [(one.name, one.keys, one.connections) for one in found.changed] == [
        ("reads", (), ("edge",)),
        ("sends", (), ("edge",)),
    ]
    assert found.unchanged == ("neither",)
    # The subscription is on the connection that is removed, or on another one.
    assert [one.keeps_subscription for one in found.changed] == [False, True]
    assert [one.keeps_messages for one in found.changed] == [True, True]


def test_the_connection_of_dead_letters_counts_as_one_of_the_route() -> None:
    one = route("a", source={"connection": "main"}, dead_letter={"subject": "dead", "connection": "edge"})
    made = configuration(
        one | {"to": [{"subject": "x", "connection": "third"}]}, connections={"main": {}, "edge": {}, "third": {}}
    )
    assert connections_of(made.routes[0]) == ("main", "third", "edge")


def test_a_core_route_keeps_its_subscription_while_connection_subject_and_queue_stay() -> None:
    def kept(old: Route, new: Route) -> bool:
        return routes_between(old, new).changed[0].keeps_subscription

    assert kept(route("a", to="one"), route("a", to="other"))
    assert kept(route("a", source={"queue": "q"}), route("a", to="other", source={"queue": "q"}))
    assert not kept(route("a"), route("a", "in.x", to="other"))
    assert not kept(route("a"), route("a", source={"queue": "q"}))
    stream = {"name": "a", "from": {"stream": "S", "durable": "d"}, "to": [{"subject": "x"}]}
    assert not kept(stream, stream | {"to": [{"subject": "y"}]})
    assert not kept(route("a"), stream)


def test_keys_of_the_process_except_the_shutdown_timeout_need_a_restart() -> None:
    old = configuration()
    new = configuration(router={"name": "n", "shutdown_timeout": "1s"}, telemetry={"listen": "", "log_level": "debug"})
    found = difference(old, new)
    assert found.needs_restart == ("router.name", "telemetry.listen", "telemetry.log_level")
    assert [one.path for one in found.process if not one.needs_restart] == ["router.shutdown_timeout"]


def test_diff_prints_every_route_and_connection() -> None:
    connections: dict[str, dict[str, Any]] = {"main": {}, "edge": {"servers": ["nats://h"]}}
    to_main = {"to": [{"subject": "x", "connection": "main"}]}
    old = configuration(
        route("stays", source={"connection": "main"}) | to_main,
        route("changes", source={"connection": "main"}) | to_main,
        route("through", source={"connection": "edge"}) | to_main,
        route("goes", source={"connection": "main"}) | to_main,
        connections=connections,
    )
    new = configuration(
        route("stays", source={"connection": "main"}) | to_main,
        route("changes", source={"connection": "main"}) | {"to": [{"subject": "y", "connection": "main"}]},
        route("through", source={"connection": "edge"}) | to_main,
        route("comes", source={"connection": "main"}) | to_main,
        connections=connections | {"edge": {"servers": ["nats://h", "nats://i"]}},
        streams=[{"name": "S", "subjects": ["s"], "connection": "main"}],
        telemetry={"log_level": "debug"},
    )
    found: Difference = difference(old, new)
    assert list(lines(found)) == [
        'telemetry.log_level: "info" -> "debug" (needs a restart)',
        "connection edge: changed",
        '    servers: ["nats://h:4222"] -> ["nats://h:4222", "nats://i:4222"]',
        "connection main: unchanged",
        "stream S on main: added",
        "route comes: added",
        "route goes: removed",
        "route changes: changed, and keeps its subscription",
        '    to[0].subject: "x" -> "y"',
        "route through: changed",
        "    its connection edge changes",
        "route stays: unchanged",
    ]


LEFT = "    retries that wait in RETRY below retry are"


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"retry": {}}, [f"{LEFT} received until none is left"]),
        ({"retry": {"schedule": {"stream": "RETRY", "prefix": "b"}}}, [f"{LEFT} received until none is left"]),
        ({"retry": {"schedule": {"stream": "RETRY", "prefix": "retry", "after": "9s"}}}, []),
        (
            {"retry": {}, "from": {"stream": "S", "durable": "d", "standby": True}},
            [f"{LEFT} received until none is left"],
        ),
        ({"retry": {}, "name": "renamed"}, [f"{LEFT} not received any more"]),
        (None, [f"{LEFT} not received any more"]),
    ],
)
def test_diff_names_retries_that_are_scheduled_where_the_new_settings_have_none(
    changed: dict[str, Any] | None, shown: list[str]
) -> None:
    route = {"name": "a", "from": {"stream": "S", "durable": "d"}, "to": [{"subject": "x"}]}
    old = configuration(route | {"retry": {"schedule": {"stream": "RETRY", "prefix": "retry"}}})
    new = configuration(*([] if changed is None else [route | changed]))
    found = [*lines(difference(old, new))]
    assert [line for line in found if "retries" in line] == shown


@pytest.mark.parametrize(
    ("routes", "left"),
    [
        ([], ["durable d of stream S on connection main stays on the server"]),
        ([{"stream": "S", "durable": "e"}], ["durable d of stream S on connection main stays on the server"]),
        ([{"stream": "S", "durable": "d", "filter": "x.*"}], []),
        ([{"subject": "x"}, {"stream": "S", "durable": "d"}], []),
    ],
)
def test_a_durable_that_no_route_reads_any_more_is_named(routes: list[dict[str, Any]], left: list[str]) -> None:
    made = [{"name": f"r{place}", "from": source, "to": [{"subject": "y"}]} for place, source in enumerate(routes)]
    old = {"name": "r0", "from": {"stream": "S", "durable": "d"}, "to": [{"subject": "y"}]}
    found = difference(configuration(old), configuration(*made))
    assert [*found.left.get("r0", ())] == left
    assert [line.strip() for line in lines(found) if "durable d" in line] == left


def test_a_url_is_shown_without_parts_that_may_be_credentials() -> None:
    old = configuration(telemetry={"otlp_endpoint": "https://collector:4318/v1?api-key=SECRET1"})
    new = configuration(telemetry={"otlp_endpoint": "https://collector:4318/v1?api-key=SECRET3"})
    (line,) = difference(old, new).lines()
    assert "SECRET" not in line
    assert line == "telemetry.otlp_endpoint: not shown -> not shown"
    moved = configuration(telemetry={"otlp_endpoint": "https://other:4318/v1?api-key=SECRET1"})
    (line,) = difference(old, moved).lines()
    assert line == ('telemetry.otlp_endpoint: "https://collector:4318/...?..." -> "https://other:4318/...?..."')


@pytest.mark.parametrize("after", ["", "?a=b", "#c", "/v1/traces"])
def test_no_key_in_the_path_of_a_url_is_shown(after: str) -> None:
    old = configuration(telemetry={"otlp_endpoint": f"https://collector:4318/SECRET1{after}"})
    new = configuration(telemetry={"otlp_endpoint": f"HTTPS://collector:4318/api/SECRET2{after}"})
    for one, other in ((old, new), (new, old), (configuration(), new), (new, configuration())):
        (line,) = difference(one, other).lines()
        assert "SECRET" not in line
        assert line.startswith("telemetry.otlp_endpoint: ")


def test_each_key_that_differs_has_a_line_that_names_its_owner() -> None:
    old = configuration(route("a"), route("b"), connections={"main": {"password": "SECRET", "user": "u"}})
    new = configuration(route("a", to="new.$1"), connections={"main": {"password": "OTHER", "user": "u"}})
    assert [*difference(old, new).lines()] == [
        "connection main: password: not shown -> not shown",
        'route a: to[0].subject: "out.$1" -> "new.$1"',
    ]
