"""Settings from files and from code: defaults, what is accepted, every problem at once, and the schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

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
    Strategy,
    TelemetrySettings,
    json_schema,
)
from tests.unit.settings.problems import MAIN, Load, one_route, problems

DOCUMENTED = """
[router]
name = "orders-router"
shutdown_timeout = "10s"

[telemetry]
listen = "127.0.0.1:9001"
log_level = "info"
log_format = "auto"
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


# --- what is accepted ---


def test_the_documented_file_has_the_defaults(load: Load) -> None:
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
    assert (source.max_in_flight, source.ack_wait, source.max_deliver, source.nak_delay) == (4096, 30.0, -1, 1.0)
    assert source.max_in_flight_bytes == 16 * 1024 * 1024
    assert source.pattern == "orders.*"


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        ({"subject": "in.*"}, "in.*"),
        ({"stream": "S", "durable": "d", "filter": "f.>"}, "f.>"),
        ({"stream": "S", "durable": "d", "filter": ["f.>", "g"]}, "f.>, g"),
        ({"stream": "S"}, ">"),
    ],
)
def test_pattern_of_a_source(keys: dict[str, object], pattern: str) -> None:
    assert SourceSettings(**keys).pattern == pattern


@pytest.mark.parametrize(
    ("keys", "api"),
    [({}, "$JS.API"), ({"domain": "hub"}, "$JS.hub.API"), ({"api_prefix": "JS.hub.API"}, "JS.hub.API")],
)
def test_subjects_of_the_jetstream_api(keys: dict[str, str], api: str) -> None:
    assert ConnectionSettings(**keys).api == api


@pytest.mark.parametrize(
    ("written", "start"),
    [
        ('"all"', "all"),
        ('"new"', "new"),
        ("41201", 41201),
        ('"2026-01-01T00:00:00Z"', "2026-01-01T00:00:00Z"),
        ('"2026-01-01t01:00:00.250+01:00"', "2026-01-01T00:00:00.25Z"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2026-01-01 02:00:00.000001+02:00", "2026-01-01T00:00:00.000001Z"),
    ],
)
def test_start_of_a_source_is_written_as_a_server_writes_it(written: str, start: str | int, load: Load) -> None:
    text = f"""
        connections.main.servers = ["nats://127.0.0.1:4222"]
        [[routes]]
        name = "r"
        from = {{ stream = "S", durable = "d", deliver = {written} }}
        to = [{{ subject = "out" }}]
    """
    assert load(text).routes[0].source.deliver == start


def test_settings_in_code_accept_keys_or_names_texts_or_numbers_and_dicts_or_sections() -> None:
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


def test_a_route_without_a_connection_uses_the_only_one() -> None:
    settings = one_route()()
    assert settings.routes[0].source.connection == "main"
    assert settings.routes[0].to[0].connection == "main"


def test_settings_are_frozen() -> None:
    settings = one_route()()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.routes = []
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.connections["main"].fail_open = True


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


# --- all problems at once, in their written form ---


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
        "connections.main.user",
        "routes[0].from.conection",
        "routes[0].to[0].subject",
        "routes[0].to[1].subject",
        "routes[0].to[2].connection",
        "routes[1].to",
        "routes[1].from.subject",
        "routes[1].name",
    }
    lines = str(caught.value).splitlines()
    assert len(lines) == 10
    file = tmp_path / "router.toml"
    assert f"{file}: connections.main.reconect_delay: unknown key; did you mean 'reconnect_delay'? (line 3)" in lines


def test_sections_from_code_are_checked_beside_a_broken_one() -> None:
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


# --- schema and cost ---


def test_the_schema_describes_every_key_of_the_file() -> None:
    schema = json_schema()
    sections = {"Settings": schema, **schema["$defs"]}
    assert set(sections) == {
        "Settings",
        "RouterSettings",
        "TelemetrySettings",
        "ConnectionSettings",
        "RouteSettings",
        "SourceSettings",
        "RetrySettings",
        "RetryScheduleSettings",
        "DeadLetterSettings",
        "DestinationSettings",
        "HeaderSettings",
        "LimitSettings",
        "BreakerSettings",
        "StreamSettings",
        "ExampleSettings",
        "ExampleMessage",
        "ExpectedMessage",
        "PositionSettings",
    }
    for name, section in sections.items():
        assert section["additionalProperties"] is False
        for key, described in section["properties"].items():
            assert described.get("description"), f"{name}.{key}"
            optional = described.get("type") in ("string", "number", "integer") or key in (
                "json",
                "headers",
                "jetstream",
                "partition_by",
            )
            optional |= "$ref" in described or "anyOf" in described  # a section or a list that is absent by default
            assert "default" in described or key in section.get("required", ()) or optional
    connection = sections["ConnectionSettings"]["properties"]
    assert connection["reconnect_delay"]["default"] == "1s"
    assert connection["max_pending_bytes"]["default"] == "64MiB"
    assert connection["servers"]["examples"] == [["nats://127.0.0.1:4222"], ["wss://nats.example.com/nats"]]
    assert set(sections["RouteSettings"]["required"]) == {"name", "from"}
    assert "null" not in json.dumps(schema)
    assert sections["RouteSettings"]["properties"]["strategy"]["enum"] == list(get_args(Strategy))
    assert set(sections["ExampleSettings"]["required"]) == {"name", "message", "expect"}
    assert {"json", "payload"} < set(sections["ExampleMessage"]["properties"])


def test_importing_and_loading_without_variables_imports_no_heavy_libraries(tmp_path: Path) -> None:
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
