"""Values that are refused one by one, each with its key and its cure, and values that are warned about."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import ConnectionSettings, Settings, SourceSettings
from router_trio.settings.checks.warnings import warnings
from tests.unit.settings.problems import MAIN, one_route, problems, route

# --- problems of form ---

NO_DESTINATION = "missing; add [[routes.to]], or set respond = true for a handler that only answers"


@pytest.mark.parametrize(
    ("connection", "key", "message"),
    [
        ({"reconect_delay": "1s"}, "reconect_delay", "unknown key; did you mean 'reconnect_delay'?"),
        ({"reconnect_delay": "1 sec"}, "reconnect_delay", "'1 sec' is not a duration; write a number and a unit"),
        ({"reconnect_delay": "0s"}, "reconnect_delay", "0s is too short; at least 10ms"),
        ({"connect_timeout": "5"}, "connect_timeout", "'5' has no unit; write '5s'"),
        ({"reconnect_attempts": 0}, "reconnect_attempts", "must be at least 1"),
        ({"reconnect_attempts": "many"}, "reconnect_attempts", "must be a whole number"),
        ({"reconnect_attempts": 1.5}, "reconnect_attempts", "must be a whole number"),
        ({"fail_open": "perhaps"}, "fail_open", "must be true or false"),
        ({"on_pending_full": "drop"}, "on_pending_full", "must be 'drop_oldest', 'reject' or 'block'"),
        ({"on_reconnect_exhausted": "x"}, "on_reconnect_exhausted", "must be 'keep_trying' or 'stop'"),
        ({"max_pending_operations": 0}, "max_pending_operations", "must be at least 1"),
        ({"max_pending_bytes": "64mib"}, "max_pending_bytes", "'64mib' is not a size"),
        ({"servers": "nats://host"}, "servers", "must be a list in brackets"),
        ({"servers": [4222]}, "servers[0]", "must be a server URL"),
        ({"user": 7}, "user", "must be text in quotes"),
        ({"user": ""}, "user", "must not be empty"),
        ({"tls_ca_file": 7}, "tls_ca_file", "must be the path of a file, in quotes"),
    ],
)
def test_bad_value_of_a_connection(connection: dict[str, Any], key: str, message: str) -> None:
    found = problems(lambda: Settings(connections={"main": connection}))
    assert set(found) == {f"connections.main.{key}"}
    assert found[f"connections.main.{key}"].startswith(message)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("router", "name", "", "must not be empty"),
        ("router", "shutdown_timeout", "soon", "'soon' is not a duration"),
        ("telemetry", "listen", "9001", "must be HOST:PORT"),
        ("telemetry", "listen", "::1:9001", "must be HOST:PORT"),
        ("telemetry", "listen", "host:99999", "must be HOST:PORT"),
        ("telemetry", "allowed_hosts", "router.example.com", "must be a list"),
        ("telemetry", "log_level", "warn", "must be 'debug', 'info', 'warning' or 'error'"),
        ("telemetry", "log_format", "text", "must be 'auto', 'json' or 'console'"),
        ("telemetry", "otlp_endpoint", "localhost:4318", "must be an HTTP URL"),
        ("telemetry", "otlp_endpoint", "http://host:port", "must be an HTTP URL"),
        ("telemetry", "otlp_endpoint", "http://[::1", "must be an HTTP URL"),
        ("telemetry", "otlp_endpoint", "http://me:you@host", "must not hold credentials"),
        ("telemetry", "trace_sample_ratio", 1.5, "must be at most 1"),
        ("telemetry", "trace_sample_ratio", -0.5, "must be at least 0"),
        ("telemetry", "trace_sample_ratio", float("nan"), "must be a finite number"),
        ("telemetry", "trace_sample_ratio", "half", "must be a number"),
    ],
)
def test_bad_value_of_the_process(section: str, key: str, value: object, message: str) -> None:
    found = problems(lambda: Settings(connections=MAIN, **{section: {key: value}}))
    assert set(found) == {f"{section}.{key}"}
    assert found[f"{section}.{key}"].startswith(message)


@pytest.mark.parametrize(
    "host",
    [
        "http://router.example.com",
        "router.example.com:9001",
        "router.example.com/",
        "*.example.com",
        "*",
        ".example.com",
        "router..example.com",
        "a b",
        "",
        "::1",
        "user@host",
        "münchen.example",
        "x" * 64,
    ],
)
def test_an_allowed_host_is_a_bare_name(host: str) -> None:
    found = problems(lambda: Settings(connections=MAIN, telemetry={"allowed_hosts": ["fine.example", host]}))
    assert set(found) == {"telemetry.allowed_hosts[1]"}
    assert found["telemetry.allowed_hosts[1]"].startswith("must be the name of a host alone")


def test_allowed_hosts_are_normalized() -> None:
    telemetry = {"allowed_hosts": ["Router.Example.COM.", "router_1", "[2001:DB8::1]"]}
    settings = Settings(connections=MAIN, telemetry=telemetry)
    assert settings.telemetry.allowed_hosts == ["router.example.com", "router_1", "2001:db8::1"]
    assert Settings(connections=MAIN).telemetry.allowed_hosts == []


@pytest.mark.parametrize(
    ("listen", "beyond"),
    [
        ("", False),
        ("127.0.0.1:9001", False),
        ("127.8.0.1:0", False),
        ("[::1]:9001", False),
        ("LocalHost:9001", False),
        ("0.0.0.0:9001", True),
        ("[::]:9001", True),
        ("10.0.0.1:9001", True),
        ("router.example.com:9001", True),
    ],
)
def test_listening_beyond_the_loopback_is_recognized(listen: str, beyond: bool) -> None:
    settings = Settings(connections=MAIN, telemetry={"listen": listen})
    assert settings.telemetry.listens_beyond_loopback is beyond


@pytest.mark.parametrize("key", ["router", "telemetry", "connections"])
def test_a_section_that_is_not_a_table_is_refused(key: str) -> None:
    found = problems(lambda: Settings(**{"connections": MAIN, key: 5}))
    assert found == {key: "must be a table of keys and values"}


def test_unknown_keys_everywhere_get_a_suggestion() -> None:
    bad = route(to=[{"subject": "out"}, {"subject": "more", "jetsream": True}], handlr="a:b")
    bad["from"]["subjct"] = "x"
    found = problems(lambda: Settings(connections=MAIN, routes=[bad], conections={}, router={"nam": "x"}))
    assert found == {
        "conections": "unknown key; did you mean 'connections'?",
        "router.nam": "unknown key; did you mean 'name'?",
        "routes[0].handlr": "unknown key; did you mean 'handler'?",
        "routes[0].from.subjct": "unknown key; did you mean 'subject'?",
        "routes[0].to[1].jetsream": "unknown key; did you mean 'jetstream'?",
    }


@pytest.mark.parametrize("value", ["all", "each", "some", 1])
def test_a_removed_key_is_refused_with_what_to_write_instead(value: Any) -> None:
    stream = {"stream": "ORDERS", "durable": "router", "ack": value}
    found = problems(lambda: Settings(connections=MAIN, routes=[route(**{"from": stream})]))
    assert found == {"routes[0].from.ack": "no longer a key; remove it: every message is acked by itself"}
    assert problems(lambda: SourceSettings(**stream)) == {"ack": found["routes[0].from.ack"]}


@pytest.mark.parametrize("value", [True, False, "yes"])
def test_fast_ingest_is_refused_with_what_to_do_instead(value: Any) -> None:
    found = problems(lambda: Settings(connections=MAIN, routes=[route(to=[{"subject": "out", "fast_ingest": value}])]))
    assert found == {
        "routes[0].to[0].fast_ingest": "no longer a key; remove it: every message gets a PubAck of its own"
    }


def test_an_unknown_key_without_a_similar_one_lists_the_known_keys() -> None:
    found = problems(lambda: Settings(connections=MAIN, router={"zzz": 1}))
    known = "'name', 'shutdown_timeout', 'workers', 'loop', 'lifespan', 'service'"
    assert found == {"router.zzz": f"unknown key; there is: {known}"}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"to": []}, "routes[0].to", NO_DESTINATION),
        ({"to": [{}]}, "routes[0].to[0].subject", "missing; give a subject, or a bucket"),
        (
            {"to": {"subject": "out"}},
            "routes[0].to",
            "must be a list of tables: write [[routes.to]], with two brackets, in place of [routes.to]",
        ),
        ({"name": ""}, "routes[0].name", "must not be empty"),
        ({"name": "a\nb"}, "routes[0].name", "has control characters; give it a name that can be printed"),
        ({"from": "in.*"}, "routes[0].from", 'must be a table: write from = { subject = "..." }'),
    ],
)
def test_bad_form_of_a_route(changes: dict[str, Any], path: str, message: str) -> None:
    assert problems(lambda: Settings(connections=MAIN, routes=[route() | changes])) == {path: message}


@pytest.mark.parametrize("key", ["name", "from"])
def test_missing_key_of_a_route(key: str) -> None:
    bad = route()
    del bad[key]
    assert problems(lambda: Settings(connections=MAIN, routes=[bad])) == {
        f"routes[0].{key}": "missing, and has no default"
    }


def test_a_route_without_destinations_is_reported_once() -> None:
    bad = route()
    del bad["to"]
    assert problems(lambda: Settings(connections=MAIN, routes=[bad])) == {"routes[0].to": NO_DESTINATION}
    broken = {"name": "", "from": {"subject": "a"}}
    assert problems(lambda: Settings(connections=MAIN, routes=[broken]))["routes[0].to"] == NO_DESTINATION


def test_section_by_itself_reports_every_problem_too() -> None:
    found = problems(lambda: ConnectionSettings(fail_opn=True, reconnect_delay="x"))
    assert set(found) == {"fail_opn", "reconnect_delay"}


def _with_destination(**to: Any) -> dict[str, Any]:
    return {"name": "r", "from": {"subject": "a.*"}, "to": [{"subject": "b", **to}]}


# --- what is copied with a message ---


@pytest.mark.parametrize(
    ("to", "path", "message"),
    [
        ({"headers": {"keep": ["X-Mine"]}}, "routes[0].to[0].headers.keep[0]", "not a control header"),
        ({"headers": {"keep": ["Nats-Msg-Id"]}}, "routes[0].to[0].headers.keep[0]", "not a control header"),
        ({"headers": {"kept": []}}, "routes[0].to[0].headers.kept", "unknown"),
        ({"reply": True, "jetstream": True}, "routes[0].to[0].reply", "PubAck"),
    ],
)
def test_headers_and_replies_that_can_not_be_copied_are_refused(to: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings(connections={"main": {"servers": ["nats://h:1"]}}, routes=[_with_destination(**to)])
    (problem,) = refused.value.problems
    assert problem.path == path
    assert message in problem.message


@pytest.mark.parametrize("keep", ["Nats-TTL", "nats-ttl", "Nats-Schedule-Target", "Nats-Expected-*"])
def test_a_control_header_may_be_kept(keep: str) -> None:
    route = _with_destination(headers={"keep": [keep]})
    settings = Settings(connections={"main": {"servers": ["nats://h:1"]}}, routes=[route])
    assert settings.routes[0].to[0].headers.keep == [keep]


@pytest.mark.parametrize("prefix", ["a b", "a.*", ">", "a.", "$SYS", "", "x" * 65])
def test_a_bad_inbox_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings(connections={"main": {"servers": ["nats://h:1"], "inbox_prefix": prefix}})
    assert [problem.path for problem in refused.value.problems] == ["connections.main.inbox_prefix"]


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ({"subject": "a"}, False),
        ({"subject": "a", "message_id": "own"}, True),
        ({"stream": "S", "durable": "d"}, True),
        ({"stream": "S", "durable": "d", "message_id": "sender"}, False),
    ],
)
def test_copies_get_ids_from_the_source_or_from_the_sender(source: dict[str, Any], own: bool) -> None:
    assert SourceSettings(**source).own_ids is own


# --- minimum values ---


@pytest.mark.parametrize(
    ("key", "refused", "accepted"),
    [
        ("connect_timeout", "1ms", "50ms"),
        ("connect_timeout", "49ms", "300ms"),
        ("liveness_interval", "1ms", "100ms"),
        ("reconnect_delay", "1ms", "10ms"),
        ("max_reconnect_delay", "1ms", "50ms"),
        ("pending_max_age", "1ms", "10ms"),
        ("pending_max_age", "9ms", "0s"),
        ("max_pending_bytes", "63B", "64B"),
    ],
)
def test_a_connection_value_too_small_to_work_is_refused_with_the_minimum(
    key: str, refused: str, accepted: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"{key}: .* too (short|small); at least"):
        Settings(connections={"main": {"servers": ["nats://a:4222"], key: refused}})
    Settings(connections={"main": {"servers": ["nats://a:4222"], key: accepted}})


@pytest.mark.parametrize(("key", "refused", "accepted"), [("ack_wait", "1ms", "100ms"), ("nak_delay", "0s", "10ms")])
def test_a_stream_value_too_small_to_work_is_refused_with_the_minimum(key: str, refused: str, accepted: str) -> None:
    def with_value(value: str) -> Settings:
        origin = {"stream": "IN", "durable": "d", key: value}
        return Settings(
            connections={"main": {"servers": ["nats://a:4222"]}},
            routes=[{"name": "r", "from": origin, "to": [{"subject": "out"}]}],
        )

    with pytest.raises(ConfigurationError, match=rf"{key}: .* too short; at least {accepted}"):
        with_value(refused)
    with_value(accepted)


def test_values_that_work_but_are_hasty_are_warned_about() -> None:
    def warned(**connection: str) -> list[str]:
        origin = {"stream": "IN", "durable": "d", "ack_wait": connection.pop("ack_wait", "30s")}
        config = Settings(
            connections={"main": {"servers": ["nats://a:4222"], **connection}},
            routes=[{"name": "r", "from": origin, "to": [{"subject": "out"}]}],
        )
        return [problem.path for problem in warnings(config.connections, config.routes)]

    assert warned() == []
    assert warned(connect_timeout="50ms") == ["connections.main.connect_timeout"]
    assert warned(liveness_interval="100ms") == ["connections.main.liveness_interval"]
    assert warned(reconnect_delay="50ms", max_reconnect_delay="100ms") == ["connections.main.max_reconnect_delay"]
    assert warned(reconnect_delay="1m") == ["connections.main.max_reconnect_delay"]
    assert warned(ack_wait="100ms") == ["routes[0].from.ack_wait"]


def test_a_gateway_whose_servers_announce_others_is_warned_about() -> None:
    def warned(**connection: Any) -> list[str]:
        config = Settings(
            connections={"main": connection},
            routes=[{"name": "r", "from": {"subject": "in"}, "to": [{"subject": "out"}]}],
        )
        return [problem.path for problem in warnings(config.connections, config.routes)]

    assert warned(servers=["wss://a"]) == []
    assert warned(servers=["wss://a", "wss://b/nats"]) == ["connections.main.ignore_announced"]
    assert warned(servers=["wss://a/nats"], ignore_announced=True) == []


def test_a_pattern_of_route_metrics_that_matches_no_route_is_warned_about() -> None:
    config = Settings(
        telemetry={"route_metrics": ["eu-*", "ordrs", "*"]},
        connections={"main": {"servers": ["nats://a:4222"]}},
        routes=[{"name": "eu-orders", "from": {"subject": "in"}, "to": [{"subject": "out"}]}],
    )
    found = [*warnings(config.connections, config.routes, (), config.telemetry.route_metrics)]
    assert [problem.path for problem in found] == ["telemetry.route_metrics[1]"]
    assert "'ordrs' matches the name of no route" in found[0].message


def test_concurrency_without_a_handler_is_warned_about() -> None:
    route = {"name": "r", "from": {"subject": "in"}, "to": [{"subject": "out"}], "concurrency": 8}
    config = Settings(connections={"main": {"servers": ["nats://a:4222"]}}, routes=[route])
    assert [problem.path for problem in warnings(config.connections, config.routes)] == ["routes[0].concurrency"]
    handled = Settings(connections=config.connections, routes=[route | {"handler": "package:function"}])
    assert not list(warnings(handled.connections, handled.routes))


@pytest.mark.parametrize(
    "value",
    ["old", "2026-01-01", "2026-01-01T00:00:00", "yesterday", 0, -7, 7.5, 2**63, "7", True, date(2026, 1, 1), ""],
)
def test_an_invalid_start_is_refused(value: object) -> None:
    found = problems(one_route(from_stream="S", from_durable="d", from_deliver=value))
    cure = "must be 'all', 'new', a sequence of the stream, or a time with its zone, such as '2026-01-01T00:00:00Z'"
    assert found == {"routes[0].from.deliver": cure}
    found = problems(one_route(from_subject="in", from_deliver="new"))
    assert found == {"routes[0].from.deliver": "is only for a stream, and this source is a subject; remove it"}


def test_a_key_in_the_wrong_table_is_refused_with_the_table_it_belongs_to() -> None:
    bad = route(max_in_flight=5, rate="5/s", ttl="1h")
    found = problems(lambda: Settings(connections={"main": {"listen": "127.0.0.1:9001"}}, routes=[bad]))
    assert found["routes[0].max_in_flight"] == "unknown key; it belongs to [routes.from]"
    assert found["routes[0].rate"] == "unknown key; it belongs to [routes.limit]"
    assert found["routes[0].ttl"] == "unknown key; it belongs to [[routes.to]]"
    assert found["connections.main.listen"] == "unknown key; it belongs to [telemetry]"


@pytest.mark.parametrize(
    ("key", "header"),
    [
        ("router", "[router]"),
        ("telemetry", "[telemetry]"),
        ("connections", "[connections.NAME]"),
        ("routes", "[[routes]]"),
        ("streams", "[[streams]]"),
        ("positions", "[[positions]]"),
        ("tests", "[[tests]]"),
    ],
)
def test_a_table_of_the_top_level_inside_of_another_one_is_refused(key: str, header: str) -> None:
    connection = {"servers": ["nats://a:4222"], key: {}}
    found = problems(lambda: Settings(connections={"main": connection}, routes=[route()]))
    assert found[f"connections.main.{key}"] == f"unknown key; it belongs to the top level, as {header}"


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"strategy": "wieghted"}, "routes[0].strategy", "did you mean 'weighted'?"),
        ({"when": "size > 1 and size < 3"}, "routes[0].when", "write '&&' for and"),
        ({"when": "not (size > 1)"}, "routes[0].when", "write !(...)"),
        ({"when": "size > 1 OR size < 3"}, "routes[0].when", "write '||' for or"),
        (
            {"to": [{"subject": "out", "headers": {"set": {"X-A": "my router"}}}]},
            "routes[0].to[0].headers.set.X-A",
            "for that very text write quotes inside of the quotes: '\"my router\"'",
        ),
        (
            {"to": [{"subject": "out", "headers": {"set": {"X-A": "trio"}}}]},
            "routes[0].to[0].headers.set.X-A",
            "for that very text write quotes inside of the quotes: '\"trio\"'",
        ),
        ({"from": {"subject": "eu.{{wildcard(1)}}"}}, "routes[0].from.subject", "exchange source and destination"),
        (
            {"from": {"stream": "S", "durable": "d", "filter": ["a.*", "eu.$1"]}},
            "routes[0].from.filter[1]",
            "exchange source and destination",
        ),
    ],
)
def test_syntax_borrowed_from_elsewhere_is_refused_with_what_is_meant(
    changes: dict[str, Any], path: str, message: str
) -> None:
    found = problems(lambda: Settings(connections=MAIN, routes=[route(**changes)]))
    assert found[path].endswith(message)


def test_an_impossible_port_is_named_in_the_problem() -> None:
    found = problems(lambda: Settings(connections={"main": {"servers": ["nats://host:99999"]}}))
    assert found == {
        "connections.main.servers[0]": "'nats://host:99999' is not a server URL: ports go up to 65535; write "
        "'nats://host:4222', 'tls://host:4222', 'wss://host/path' or 'host:4222'"
    }


@pytest.mark.parametrize(
    ("pattern", "destination", "left_out"),
    [
        ("orders.*.>", "eu.orders.>", "{{wildcard(1)}}"),
        ("a.*.orders.*.>", "eu.{{wildcard(2)}}.>", "{{wildcard(1)}}"),
        ("orders.*.>", "eu.orders.$1.>", None),
        ("orders.*.>", "eu.{{partition(3,1)}}.>", None),
        ("orders.>", "eu.orders.>", None),
        ("orders.*.>", "audit", None),
    ],
)
def test_a_destination_that_drops_a_token_before_the_rest_is_warned_about(
    pattern: str, destination: str, left_out: str | None
) -> None:
    source = {"stream": "S", "durable": "d", "filter": pattern}
    settings = Settings(connections=MAIN, routes=[route(**{"from": source}, to=[{"subject": destination}])])
    found = [one.message for one in warnings(settings.connections, settings.routes) if one.path.endswith(".subject")]
    assert [left_out in one for one in found if left_out] == [True] * (left_out is not None)
    assert bool(found) == (left_out is not None)
