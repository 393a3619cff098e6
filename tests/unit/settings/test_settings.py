"""Settings from files and from code: defaults, every rule, every problem at once, and secrets that stay secret."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from router_trio.errors import ConfigurationError, Problem
from router_trio.settings import (
    ConnectionSettings,
    DestinationSettings,
    RouteSettings,
    ServerURL,
    Settings,
    SourceSettings,
    TelemetrySettings,
    json_schema,
)
from router_trio.settings.warnings import warnings

MAIN = {"main": {"servers": ["nats://127.0.0.1:4222"]}}

DOCUMENTED = """
[router]
name = "orders-router"
shutdown_timeout = "10s"

[telemetry]
listen = "127.0.0.1:9001"
log_level = "info"
log_format = "json"
otlp_endpoint = ""
trace_sample_ratio = 0.01

[connections.main]
servers = ["nats://127.0.0.1:4222"]
connect_timeout = "2s"
liveness_interval = "5s"
reconnect_attempts = 10
reconnect_delay = "1s"
max_reconnect_delay = "30s"
on_reconnect_exhausted = "keep_trying"
fail_open = false
max_pending_operations = 1000
max_pending_bytes = "64MiB"
on_pending_full = "drop_oldest"
pending_max_age = "0s"

[[routes]]
name = "eu-orders"
[routes.from]
connection = "main"
subject = "orders.*.*"
queue = "routers"
[[routes.to]]
connection = "main"
subject = "eu.{{wildcard(1)}}.{{wildcard(2)}}"
jetstream = true
"""

Load = Callable[[str], Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a router.toml and load it, away from this process's environment."""

    def load_text(text: str) -> Settings:
        path = tmp_path / "router.toml"
        path.write_text(text)
        return Settings.load(path, environ={})

    return load_text


def problems(make: Callable[[], object]) -> dict[str, str]:
    """Return what the configuration is refused for, by key path."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem a key"
    return found


def route(**changes: Any) -> dict[str, Any]:
    """Return a valid route with some of its keys changed; those of `from` as `from_key`."""
    source = {key.removeprefix("from_"): value for key, value in changes.items() if key.startswith("from_")}
    rest = {key: value for key, value in changes.items() if not key.startswith("from_")}
    return {"name": "r", "from": source or {"subject": "in.*"}, "to": [{"subject": "out"}], **rest}


def one_route(**changes: Any) -> Callable[[], Settings]:
    """Return a constructor of settings with that route."""
    return lambda: Settings(connections=MAIN, routes=[route(**changes)])


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_documented_file_is_the_defaults(load: Load) -> None:
    settings = load(DOCUMENTED)
    assert settings.router.name == "orders-router"
    assert settings.router.shutdown_timeout == 10.0
    assert settings.telemetry == TelemetrySettings()
    main = settings.connections["main"]
    assert main == ConnectionSettings(servers=["nats://127.0.0.1:4222"])
    assert main.servers == [ServerURL("127.0.0.1", 4222)]
    assert (main.connect_timeout, main.liveness_interval) == (2.0, 5.0)
    assert (main.reconnect_attempts, main.reconnect_delay, main.max_reconnect_delay) == (10, 1.0, 30.0)
    assert (main.on_reconnect_exhausted, main.fail_open) == ("keep_trying", False)
    assert (main.max_pending_operations, main.max_pending_bytes) == (1000, 64 * 2**20)
    assert (main.on_pending_full, main.pending_max_age, main.tls_handshake_first) == ("drop_oldest", 0.0, False)
    [eu] = settings.routes
    assert eu.source == SourceSettings(connection="main", subject="orders.*.*", queue="routers")
    assert eu.to == [
        DestinationSettings(connection="main", subject="eu.{{wildcard(1)}}.{{wildcard(2)}}", jetstream=True)
    ]
    assert eu.handler is None


def test_stream_source_has_its_defaults() -> None:
    settings = one_route(from_stream="ORDERS", from_durable="router", from_filter="orders.*")()
    source = settings.routes[0].source
    assert (source.max_in_flight, source.ack_wait, source.max_deliver, source.nak_delay) == (1024, 30.0, -1, 1.0)
    assert source.max_in_flight_bytes == 16 * 1024 * 1024
    assert source.pattern == "orders.*"


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [({"subject": "in.*"}, "in.*"), ({"stream": "S", "durable": "d", "filter": "f.>"}, "f.>"), ({"stream": "S"}, ">")],
)
def test_pattern_of_a_source(keys: dict[str, str], pattern: str) -> None:
    assert SourceSettings(**keys).pattern == pattern


def test_code_may_use_keys_or_names_texts_or_numbers_and_dicts_or_sections() -> None:
    by_key = Settings(
        connections={"main": {"servers": ["127.0.0.1"], "reconnect_delay": "2s", "max_pending_bytes": "1KiB"}},
        routes=[{"name": "a", "from": {"subject": "in.*"}, "to": [{"subject": "out"}]}],
    )
    by_name = Settings(
        connections={"main": ConnectionSettings(servers=["127.0.0.1"], reconnect_delay=2, max_pending_bytes=1024)},
        routes=[
            RouteSettings(name="a", source=SourceSettings(subject="in.*"), to=[DestinationSettings(subject="out")])
        ],
    )
    assert by_key == by_name


def test_settings_survive_a_dump() -> None:
    settings = one_route()()
    assert Settings(**settings.model_dump()) == settings
    assert Settings(**json.loads(settings.model_dump_json())) == settings


def test_routes_without_a_connection_mean_the_only_one() -> None:
    settings = one_route()()
    assert settings.routes[0].source.connection == "main"
    assert settings.routes[0].to[0].connection == "main"


def test_settings_are_frozen() -> None:
    settings = one_route()()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.routes = []
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.connections["main"].fail_open = True


def test_examples_for_the_test_command_are_kept_as_they_are(load: Load) -> None:
    settings = load(DOCUMENTED + '[[tests]]\nname = "x"\ninput = { subject = "orders.1.2", anything = [1, 2] }\n')
    assert settings.tests == [{"name": "x", "input": {"subject": "orders.1.2", "anything": [1, 2]}}]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9001", ("127.0.0.1", 9001)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9001", ("::1", 9001)),
        ("", None),
    ],
)
def test_listen_address(text: str, address: tuple[str, int] | None) -> None:
    assert TelemetrySettings(listen=text).listen_address == address


@pytest.mark.parametrize("url", ["", "http://localhost:4318", "https://collector.example.com/otlp"])
def test_otlp_endpoint(url: str) -> None:
    assert TelemetrySettings(otlp_endpoint=url).otlp_endpoint == url


# --- server URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "tls", "shown"),
    [
        ("nats://127.0.0.1:4222", "127.0.0.1", 4222, False, "nats://127.0.0.1:4222"),
        ("nats://nats.example.com", "nats.example.com", 4222, False, "nats://nats.example.com:4222"),
        ("tls://nats.example.com:443/", "nats.example.com", 443, True, "tls://nats.example.com:443"),
        ("TLS://NATS.example.com", "nats.example.com", 4222, True, "tls://nats.example.com:4222"),
        ("localhost", "localhost", 4222, False, "nats://localhost:4222"),
        ("localhost:5222", "localhost", 5222, False, "nats://localhost:5222"),
        ("nats://[::1]:5222", "::1", 5222, False, "nats://[::1]:5222"),
    ],
)
def test_server_url_is_read(text: str, host: str, port: int, tls: bool, shown: str) -> None:
    url = ServerURL.parse(text)
    assert (url.host, url.port, url.tls, str(url)) == (host, port, tls, shown)
    assert not url.has_credentials


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nats://",
        "nats://:4222",
        "nats://host:port",
        "nats://host:",
        "nats://host:0",
        "nats://host:70000",
        "nats://host:4222/path",
        "nats://host?x=1",
        "nats://ho st",
        "nats://host\n:4222",
        "nats://[::1:4222",
        "nats://a,b:4222",
        "http://host:4222",
        "nats:host",
    ],
)
def test_bad_server_url_is_refused(text: str) -> None:
    found = problems(lambda: Settings(connections={"main": {"servers": ["ok", text]}}))
    assert set(found) == {"connections.main.servers[1]"}
    assert "'nats://host:4222'" in found["connections.main.servers[1]"]


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_websocket_is_refused_by_name(scheme: str) -> None:
    found = problems(lambda: Settings(connections={"main": {"servers": [f"{scheme}://host:80"]}}))
    assert "WebSocket servers" in found["connections.main.servers[0]"]


def test_credentials_in_a_server_url_are_split_off() -> None:
    url = ServerURL.parse("nats://ann:s%40crt@host:4222")
    assert url.user is not None
    assert url.password is not None
    assert (url.user.get_secret_value(), url.password.get_secret_value(), url.token) == ("ann", "s@crt", None)
    url = ServerURL.parse("nats://t0ken@host")
    assert url.token is not None
    assert (url.token.get_secret_value(), url.user, url.password) == ("t0ken", None, None)
    assert url.has_credentials


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "connection",
    [
        {"user": "ann", "password": "HUSH"},
        {"token": "HUSH"},
        {"servers": ["nats://ann:HUSH@host:4222"]},
        {"servers": ["nats://HUSH@host:4222"]},
        {"servers": ["HUSH:HUSH@host"]},
    ],
)
def test_secrets_are_never_shown(connection: dict[str, Any]) -> None:
    settings = Settings(connections={"main": connection})
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())]
    shown += [str(settings.model_dump(mode="json")), *map(str, settings.connections["main"].servers)]
    assert not [text for text in shown if "HUSH" in text]


@pytest.mark.parametrize(
    "connection",
    [
        {"password": ["HUSH"], "typo": "HUSH"},
        {"token": "HUSH", "user": "ann", "password": "HUSH", "fail_open": "HUSH"},
        {"servers": ["nats://ann:HUSH@host:port", "ws://ann:HUSH@host", "http://HUSH@host", "nats://HUSH/x@host"]},
        {"servers": "nats://ann:HUSH@host"},
        {"servers": [{"HUSH": "HUSH"}]},
        {"servers": ["nats://a:HUSH@host"], "token": "HUSH"},
        "HUSH",
    ],
)
def test_secrets_are_never_shown_in_errors(connection: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(connections={"main": connection})
    assert "HUSH" not in str(caught.value)
    # Nor in a traceback, which shows the errors that led to this one.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


# --- problems of form ------------------------------------------------------------------------------------------------


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
        ("telemetry", "log_format", "text", "must be 'json' or 'console'"),
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
def test_an_allowed_host_is_a_name_alone(host: str) -> None:
    found = problems(lambda: Settings(connections=MAIN, telemetry={"allowed_hosts": ["fine.example", host]}))
    assert set(found) == {"telemetry.allowed_hosts[1]"}
    assert found["telemetry.allowed_hosts[1]"].startswith("must be the name of a host alone")


def test_allowed_hosts_are_compared_in_one_form() -> None:
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
def test_listening_beyond_the_loopback(listen: str, beyond: bool) -> None:
    settings = Settings(connections=MAIN, telemetry={"listen": listen})
    assert settings.telemetry.listens_beyond_loopback is beyond


@pytest.mark.parametrize("key", ["router", "telemetry", "connections"])
def test_section_that_is_no_table(key: str) -> None:
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


def test_unknown_key_without_a_likeness_lists_what_there_is() -> None:
    found = problems(lambda: Settings(connections=MAIN, router={"zzz": 1}))
    assert found == {"router.zzz": "unknown key; there is: 'name', 'shutdown_timeout'"}


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"to": []}, "routes[0].to", "must have at least 1 entry"),
        ({"to": [{}]}, "routes[0].to[0].subject", "missing, and has no default"),
        ({"to": {"subject": "out"}}, "routes[0].to", "must be a list in brackets"),
        ({"name": ""}, "routes[0].name", "must not be empty"),
        ({"name": "a\nb"}, "routes[0].name", "has control characters; give it a name that can be printed"),
        ({"from": "in.*"}, "routes[0].from", "must be a table of keys and values"),
    ],
)
def test_bad_form_of_a_route(changes: dict[str, Any], path: str, message: str) -> None:
    assert problems(lambda: Settings(connections=MAIN, routes=[route() | changes])) == {path: message}


@pytest.mark.parametrize("key", ["name", "from", "to"])
def test_missing_key_of_a_route(key: str) -> None:
    bad = route()
    del bad[key]
    assert problems(lambda: Settings(connections=MAIN, routes=[bad])) == {
        f"routes[0].{key}": "missing, and has no default"
    }


def test_section_by_itself_reports_every_problem_too() -> None:
    found = problems(lambda: ConnectionSettings(fail_opn=True, reconnect_delay="x"))
    assert set(found) == {"fail_opn", "reconnect_delay"}


# --- problems between values -----------------------------------------------------------------------------------------


def test_no_connection_names_the_cure() -> None:
    found = problems(lambda: Settings(routes=[route(from_subject="in", from_connection="main")]))
    assert set(found) == {"connections"}
    assert problems(Settings) == found
    assert "add [connections.main] with servers = ['nats://127.0.0.1:4222']" in found["connections"]


@pytest.mark.parametrize("name", ["a.b", "a b", "", "a__b", "ä"])
def test_connection_name_must_fit_a_key(name: str) -> None:
    found = problems(lambda: Settings(connections={name: {}}))
    assert "give it another name" in found[f"connections.{name}"]


def test_missing_servers_are_found_by_require_servers(load: Load, tmp_path: Path) -> None:
    settings = load('[connections.a]\nservers = ["host"]\n[connections.b]\n')
    with pytest.raises(ConfigurationError) as caught:
        settings.require_servers()
    [problem] = caught.value.problems
    assert problem.path == "connections.b.servers"
    assert "--embedded-nats" in problem.message
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
        ({"tls_ca_file": "/nowhere/\0"}, {"tls_ca_file": "there is no file"}),
        ({"tls_ca_file": "x" * 300}, {"tls_ca_file": f"'{'x' * 300}' can't be looked at (File name too long)"}),
    ],
)
def test_contradictions_of_a_connection(connection: dict[str, Any], found: dict[str, str]) -> None:
    actual = problems(lambda: Settings(connections={"main": connection}))
    assert set(actual) == {f"connections.main.{key}" for key in found}
    for key, message in found.items():
        assert actual[f"connections.main.{key}"].startswith(message)


def test_each_further_way_to_authenticate_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.touch()
    connection = {"credentials_file": file, "nkey_seed_file": file, "token": "t"}
    found = problems(lambda: Settings(connections={"main": connection}))
    assert set(found) == {"connections.main.nkey_seed_file", "connections.main.token"}


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_certificate_and_key_need_each_other(given: str, missing: str, tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    found = problems(lambda: Settings(connections={"main": {f"tls_{given}_file": file}}))
    assert set(found) == {f"connections.main.tls_{missing}_file"}
    assert found[f"connections.main.tls_{missing}_file"].startswith("missing")


def test_route_must_say_which_of_several_connections() -> None:
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
        ({"stream": "S.1", "durable": "d"}, {".stream": "'S.1' holds '.'"}),
        ({"stream": "S", "durable": "d*"}, {".durable": "'d*' holds '*'"}),
        ({"subject": "a", "queue": "q q"}, {".queue": "'q q' holds ' '"}),
        ({"stream": "S", "durable": "d", "max_deliver": 0}, {".max_deliver": "0 would deliver nothing"}),
    ],
)
def test_contradictions_of_a_source(source: dict[str, Any], found: dict[str, str]) -> None:
    actual = problems(lambda: Settings(connections=MAIN, routes=[route() | {"from": source}]))
    assert set(actual) == {f"routes[0].from{key}" for key in found}
    for key, message in found.items():
        assert actual[f"routes[0].from{key}"].startswith(message)


def test_impossible_mapping_is_refused() -> None:
    to = [{"subject": "out.{{wildcard(1)}}"}, {"subject": "out.{{wildcard(2)}}"}, {"subject": "out.{{nothing(1)}}"}]
    found = problems(one_route(to=to))
    assert set(found) == {"routes[0].to[1].subject", "routes[0].to[2].subject"}
    assert "out of range" in found["routes[0].to[1].subject"]


def test_mapping_from_a_whole_stream_starts_from_everything() -> None:
    assert one_route(from_stream="S", from_durable="d", to=[{"subject": "archive.>"}])()
    to = [{"subject": "archive.{{wildcard(1)}}"}]
    found = problems(one_route(from_stream="S", from_durable="d", to=to))
    assert set(found) == {"routes[0].to[0].subject"}


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
def test_route_that_feeds_itself_is_refused(source: str, destination: str, jetstream: bool) -> None:
    to = [{"subject": destination, "jetstream": jetstream}]
    for keys in ({"from_subject": source}, {"from_stream": "S", "from_durable": "d", "from_filter": source}):
        found = problems(one_route(to=to, **keys))
        assert set(found) == {"routes[0].to[0].subject"}
        assert "the route would feed itself" in found["routes[0].to[0].subject"]


@pytest.mark.parametrize(("source", "destination"), NO_LOOPS)
def test_route_that_does_not_feed_itself_is_accepted(source: str, destination: str) -> None:
    assert one_route(from_subject=source, to=[{"subject": destination}])()


@pytest.mark.parametrize(("source", "destination"), LOOPS)
def test_the_same_subjects_on_another_connection_are_no_loop(source: str, destination: str) -> None:
    there = {
        "name": "r",
        "from": {"connection": "main", "subject": source},
        "to": [{"connection": "other", "subject": destination}],
    }
    assert Settings(connections={**MAIN, "other": {}}, routes=[there])


# --- all problems at once, in their written form ---------------------------------------------------------------------


def test_every_problem_is_reported_at_once(load: Load, tmp_path: Path) -> None:
    text = """
    [connections.main]
    reconect_delay = "1s"
    token = "t"
    user = "u"
    password = "p"
    fail_open = "perhaps"
    [[routes]]
    name = "a"
    from = { subject = "in.*", conection = "main" }
    to = [{ subject = 5 }, { subject = "out.{{wildcard(2)}}" }, { subject = "out", connection = "mani" }]
    [[routes]]
    name = "a"
    from = { subject = "in..x" }
    to = []
    """
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    assert {problem.path for problem in caught.value.problems} == {
        "connections.main.reconect_delay",
        "connections.main.fail_open",
        "routes[0].from.conection",
        "routes[0].to[0].subject",
        "routes[0].to[1].subject",
        "routes[0].to[2].connection",
        "routes[1].to",
        "routes[1].from.subject",
        "routes[1].name",
    }
    lines = str(caught.value).splitlines()
    assert len(lines) == 9
    file = tmp_path / "router.toml"
    assert f"{file}: connections.main.reconect_delay: unknown key; did you mean 'reconnect_delay'?" in lines


def test_sections_from_code_are_checked_next_to_a_broken_one() -> None:
    good = RouteSettings(
        name="r", source=SourceSettings(subject="in"), to=[DestinationSettings(subject="out", connection="mian")]
    )
    connections = {"main": ConnectionSettings(user="u")}
    found = problems(lambda: Settings(connections=connections, routes=[good, 5, {"name": "r", "from": 5, "to": 5}]))
    assert set(found) == {
        "connections.main.password",
        "routes[0].to[0].connection",
        "routes[1]",
        "routes[2].from",
        "routes[2].to",
        "routes[2].name",
    }


def test_problems_of_settings_in_code_name_no_file() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(connections=MAIN, router={"nam": "x"})
    assert caught.value.problems == (Problem("router.nam", "unknown key; did you mean 'name'?"),)
    assert str(caught.value) == "settings: router.nam: unknown key; did you mean 'name'?"


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[router]\nname = \n", "line 2, column 8"),
        ("[router\n", "line 1, column 8"),
        ("a = 1\na = 2\n", "line 2, column 6"),
        ('a = "x', "line 1, column 7"),
        ('a = """\nx', "line 2, column 2"),
    ],
)
def test_toml_error_names_line_and_column(text: str, place: str, load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    assert str(caught.value).startswith(f"{tmp_path / 'router.toml'}: not valid TOML: ")
    assert place in str(caught.value)


def test_file_that_is_not_utf8_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_bytes(b"[router]\nname = '\xff'\n")
    with pytest.raises(ConfigurationError, match="line 2, column 9; save the file as UTF-8"):
        Settings.load(path, environ={})


def test_missing_file_and_folder_name_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file; create it or correct the path") as caught:
        Settings.load(str(tmp_path / "none.toml"), environ={})
    assert caught.value.source == str(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="this is a folder"):
        Settings.load(tmp_path, environ={})
    for path in ("router\0.toml", "x" * 300):
        with pytest.raises(ConfigurationError, match=r"can't be read .*; c"):
            Settings.load(path, environ={})


def test_number_without_a_unit_in_a_file_is_refused(load: Load) -> None:
    found = problems(lambda: load("[connections.main]\nreconnect_delay = 500\nmax_pending_bytes = 4096\n"))
    assert found == {
        "connections.main.reconnect_delay": "has no unit; write '500s' for seconds or '500ms'",
    }


def test_paths_in_a_file_are_relative_to_its_folder(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere, tmp_path / "tls"):
        folder.mkdir()
    for file in (tmp_path / "user.creds", tmp_path / "tls" / "ca.pem", home / "cert.pem", elsewhere / "key.pem"):
        file.touch()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    main = load(
        f"""
        [connections.main]
        credentials_file = "user.creds"
        tls_ca_file = "tls/ca.pem"
        tls_cert_file = "~/cert.pem"
        tls_key_file = "{elsewhere}/key.pem"
        """
    ).connections["main"]
    assert main.credentials_file == tmp_path / "user.creds"
    assert main.tls_ca_file == tmp_path / "tls" / "ca.pem"
    assert main.tls_cert_file == home / "cert.pem"
    assert main.tls_key_file == elsewhere / "key.pem"


def test_home_of_nobody_is_no_crash(load: Load, tmp_path: Path) -> None:
    found = problems(lambda: load('[connections.main]\ntls_ca_file = "~no.such.user/ca.pem"\n'))
    missing = str(tmp_path / "~no.such.user" / "ca.pem")
    assert found == {"connections.main.tls_ca_file": f"there is no file {missing!r}; create it or correct the path"}


# --- schema and cost -------------------------------------------------------------------------------------------------


def test_schema_describes_every_key_of_the_file() -> None:
    schema = json_schema()
    sections = {"Settings": schema, **schema["$defs"]}
    assert set(sections) == {
        "Settings",
        "RouterSettings",
        "TelemetrySettings",
        "ConnectionSettings",
        "RouteSettings",
        "SourceSettings",
        "DestinationSettings",
        "HeaderSettings",
    }
    for name, section in sections.items():
        assert section["additionalProperties"] is False
        for key, described in section["properties"].items():
            assert described.get("description"), f"{name}.{key}"
            assert "default" in described or key in section.get("required", ()) or described["type"] == "string"
    connection = sections["ConnectionSettings"]["properties"]
    assert connection["reconnect_delay"]["default"] == "1s"
    assert connection["max_pending_bytes"]["default"] == "64MiB"
    assert connection["servers"]["examples"] == [["nats://127.0.0.1:4222"]]
    assert set(sections["RouteSettings"]["required"]) == {"name", "from", "to"}
    assert "null" not in json.dumps(schema)


def test_import_is_light_and_so_is_loading_without_variables(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(DOCUMENTED)
    code = f"""
import sys
from router_trio.settings import Settings
Settings.load({str(path)!r}, environ={{"HOME": "/", "PATH": ""}})
print(sorted({{name.split(".")[0] for name in sys.modules}} & {{"trio", "nats", "opentelemetry", "pydantic_settings"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what goes along with a message ---


def _with_destination(**to: Any) -> dict[str, Any]:
    return {"name": "r", "from": {"subject": "a.*"}, "to": [{"subject": "b", **to}]}


@pytest.mark.parametrize(
    ("to", "path", "told"),
    [
        ({"headers": {"keep": ["X-Mine"]}}, "routes[0].to[0].headers.keep[0]", "no control header"),
        ({"headers": {"keep": ["Nats-Msg-Id"]}}, "routes[0].to[0].headers.keep[0]", "no control header"),
        ({"headers": {"kept": []}}, "routes[0].to[0].headers.kept", "unknown"),
        ({"reply": True, "jetstream": True}, "routes[0].to[0].reply", "PubAck"),
    ],
)
def test_what_can_not_go_along_is_refused(to: dict[str, Any], path: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings(connections={"main": {"servers": ["nats://h:1"]}}, routes=[_with_destination(**to)])
    (problem,) = refused.value.problems
    assert problem.path == path
    assert told in problem.message


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
def test_whose_ids_copies_get(source: dict[str, Any], own: bool) -> None:
    assert SourceSettings(**source).own_ids is own


# --- the least values that work ---


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
def test_what_can_not_work_on_a_connection_is_refused_with_the_least_value(
    key: str, refused: str, accepted: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"{key}: .* too (short|small); at least"):
        Settings(connections={"main": {"servers": ["nats://a:4222"], key: refused}})
    Settings(connections={"main": {"servers": ["nats://a:4222"], key: accepted}})


@pytest.mark.parametrize(("key", "refused", "accepted"), [("ack_wait", "1ms", "100ms"), ("nak_delay", "0s", "10ms")])
def test_what_can_not_work_on_a_stream_is_refused_with_the_least_value(key: str, refused: str, accepted: str) -> None:
    def settings(value: str) -> Settings:
        origin = {"stream": "IN", "durable": "d", key: value}
        return Settings(
            connections={"main": {"servers": ["nats://a:4222"]}},
            routes=[{"name": "r", "from": origin, "to": [{"subject": "out"}]}],
        )

    with pytest.raises(ConfigurationError, match=rf"{key}: .* too short; at least {accepted}"):
        settings(refused)
    settings(accepted)


def test_what_works_and_is_hasty_is_warned_about() -> None:
    def warned(**connection: str) -> list[str]:
        origin = {"stream": "IN", "durable": "d", "ack_wait": connection.pop("ack_wait", "30s")}
        config = Settings(
            connections={"main": {"servers": ["nats://a:4222"], **connection}},
            routes=[{"name": "r", "from": origin, "to": [{"subject": "out"}]}],
        )
        return [problem.path for problem in warnings(config)]

    assert warned() == []
    assert warned(connect_timeout="50ms") == ["connections.main.connect_timeout"]
    assert warned(liveness_interval="100ms") == ["connections.main.liveness_interval"]
    assert warned(reconnect_delay="50ms", max_reconnect_delay="100ms") == ["connections.main.max_reconnect_delay"]
    assert warned(reconnect_delay="1m") == ["connections.main.max_reconnect_delay"]
    assert warned(ack_wait="100ms") == ["routes[0].from.ack_wait"]
