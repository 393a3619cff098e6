"""Environment variables over a file: which keys they set, which are refused, and that none is silently ignored."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import ServerURL, Settings
from tests.support.credentials import create_operator

FILE = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
reconnect_delay = "2s"

[connections.Edge-1]

[[routes]]
name = "a"
[routes.from]
connection = "main"
subject = "in.*"
[[routes.to]]
connection = "main"
subject = "out"
[[routes.to]]
connection = "Edge-1"
subject = "copy"
"""

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that loads a file with the given variables, named without their prefix."""

    def load_with(text: str = FILE, **variables: str) -> Settings:
        path = tmp_path / "router.toml"
        path.write_text(text)
        return Settings.load(path, environ={f"ROUTER_TRIO_{name}": value for name, value in variables.items()})

    return load_with


def problems(make: Callable[[], object]) -> dict[str, str]:
    """Return the problems for which the configuration is refused, by key path or variable."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "more than one problem for a key"
    return found


def test_variable_overrides_the_file_and_leaves_the_rest(load: Load) -> None:
    settings = load(CONNECTIONS__MAIN__FAIL_OPEN="true", ROUTER__NAME="x", TELEMETRY__TRACE_SAMPLE_RATIO="0.5")
    main = settings.connections["main"]
    assert (main.fail_open, main.reconnect_delay, main.servers) == (True, 2.0, [ServerURL("127.0.0.1")])
    assert (settings.router.name, settings.telemetry.trace_sample_ratio) == ("x", 0.5)
    assert not settings.connections["Edge-1"].fail_open


def test_every_kind_of_value_is_read(load: Load) -> None:
    main = load(
        CONNECTIONS__MAIN__RECONNECT_ATTEMPTS="3",
        CONNECTIONS__MAIN__RECONNECT_DELAY="5s",
        CONNECTIONS__MAIN__MAX_PENDING_BYTES="4096",
        CONNECTIONS__MAIN__ON_PENDING_FULL="block",
        CONNECTIONS__MAIN__USER="ann",
        CONNECTIONS__MAIN__PASSWORD='["not", "JSON"]',
        CONNECTIONS__MAIN__SERVERS='["host-a", "tls://host-b:443"]',
    ).connections["main"]
    assert (main.reconnect_attempts, main.reconnect_delay, main.max_pending_bytes) == (3, 5.0, 4096)
    assert (main.on_pending_full, main.user) == ("block", "ann")
    assert main.password is not None
    assert main.password.get_secret_value() == '["not", "JSON"]'
    assert main.servers == [ServerURL("host-a"), ServerURL("host-b", 443, tls=True)]


def test_an_empty_text_is_a_value(load: Load) -> None:
    assert load(TELEMETRY__LISTEN="").telemetry.listen_address is None


@pytest.mark.parametrize(
    "name", ["CONNECTIONS__EDGE_1__FAIL_OPEN", "connections__edge-1__fail_open", "Connections__Edge_1__Fail_Open"]
)
def test_a_connection_keeps_the_name_given_in_the_file(name: str, load: Load) -> None:
    settings = load(**{name: "true"})
    assert set(settings.connections) == {"main", "Edge-1"}
    assert settings.connections["Edge-1"].fail_open


def test_the_prefix_may_be_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(FILE)
    assert Settings.load(path, environ={"router_trio_router__name": "x"}).router.name == "x"


def test_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "router.toml"
    path.write_text(FILE)
    monkeypatch.setenv("ROUTER_TRIO_ROUTER__NAME", "from-environment")
    assert Settings.load(path).router.name == "from-environment"
    assert Settings.load(path, environ={}).router.name == "router-trio"


def test_routes_are_reached_by_number(load: Load) -> None:
    settings = load(
        ROUTES__0__FROM__SUBJECT="other.*",
        ROUTES__0__TO__1__SUBJECT="copy.$1",
        ROUTES__0__TO__1__JETSTREAM="true",
        CONNECTIONS__MAIN__SERVERS__0="host",
    )
    [route] = settings.routes
    assert route.source.subject == "other.*"
    assert [(to.subject, to.jetstream) for to in route.to] == [("out", False), ("copy.$1", True)]
    assert settings.connections["main"].servers == [ServerURL("host")]


def test_entire_lists_and_tables_are_json(load: Load) -> None:
    settings = load(
        ROUTES='[{"name": "b", "from": {"connection": "main", "subject": "x"}, "to": []}]',
        ROUTES__0__TO='[{"connection": "main", "subject": "y"}]',
        CONNECTIONS__MAIN='{"fail_open": true}',
        TELEMETRY='{"log_level": "debug"}',
        TESTS='[{"name": "t", "message": {"subject": "a", "json": [1]}, "expect": []}]',
    )
    [route] = settings.routes
    assert (route.name, route.source.subject, route.to[0].subject) == ("b", "x", "y")
    assert settings.connections["main"].fail_open
    assert settings.connections["main"].reconnect_delay == 2.0
    assert settings.telemetry.log_level == "debug"
    assert [(test.name, test.message.body, test.expect) for test in settings.tests] == [("t", [1], [])]


def test_keys_that_decide_by_content_can_be_set(load: Load) -> None:
    settings = load(
        ROUTES__0__WHEN="body.total > 100",
        ROUTES__0__TO__0__TTL="1h",
        ROUTES__0__TO__0__JETSTREAM="true",
        ROUTES__0__TO__0__MIRROR="0.5",
        ROUTES__0__TO__0__HEADERS__REMOVE='["X-Internal"]',
        ROUTES__0__TO__0__HEADERS__SET='{"X-Region": "body.region"}',
    )
    [route] = settings.routes
    first = route.to[0]
    assert (route.when, first.ttl, first.mirror) == ("body.total > 100", 3600.0, 0.5)
    assert (first.headers.remove, first.headers.set) == (["X-Internal"], {"X-Region": "body.region"})


def test_a_wrong_expression_names_its_variable_and_is_shown_marked(load: Load) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(ROUTES__0__WHEN='heders["a"] == "b"')
    first, *picture = str(caught.value).splitlines()
    assert first.endswith("did you mean 'headers'? (set by ROUTER_TRIO_ROUTES__0__WHEN, route 'a')")
    assert picture == ['  heders["a"] == "b"', "  ^^^^^^"]


def test_sections_that_the_file_lacks_can_be_set(load: Load) -> None:
    settings = load("", CONNECTIONS__MAIN__SERVERS='["host"]', CONNECTIONS__MAIN__FAIL_OPEN="1")
    assert settings.connections["main"].servers == [ServerURL("host")]
    assert settings.connections["main"].fail_open


def test_paths_are_relative_to_the_folder_of_the_file(load: Load, tmp_path: Path) -> None:
    create_operator().credentials(tmp_path / "user.creds")
    settings = load(CONNECTIONS__MAIN__CREDENTIALS_FILE="user.creds")
    assert settings.connections["main"].credentials_file == tmp_path / "user.creds"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CONECTIONS__MAIN__USER", "x", "sets nothing; did you mean ROUTER_TRIO_CONNECTIONS__MAIN__USER?"),
        ("ROUTES__FIRST__NAME", "x", "sets nothing; did you mean ROUTER_TRIO_ROUTES__0__NAME?"),
        ("ROUTER__NAME__FIRST", "x", "sets nothing; did you mean ROUTER_TRIO_ROUTER__NAME?"),
        ("QQQQ__QQQQ", "x", "sets nothing; `router-trio schema` shows all keys"),
        ("__", "x", "sets nothing; `router-trio schema` shows all keys"),
        ("ROUTES__1__NAME", "x", "there is no routes[1] in the file; entries are counted from 0"),
        ("ROUTES__0__TO__2__SUBJECT", "x", "there is no routes[0].to[2] in the file; entries are counted from 0"),
        ("CONNECTIONS__MAIN__SERVERS", "HUSH", "is not JSON; write a list as"),
        ("ROUTES__0__TO", "HUSH", "is not JSON; write a list as"),
        ("ROUTER", "HUSH", "is not JSON; write a list as"),
    ],
)
def test_a_variable_that_can_not_be_used_is_refused(name: str, value: str, message: str, load: Load) -> None:
    found = problems(lambda: load(**{name: value}))
    assert set(found) == {f"ROUTER_TRIO_{name}"}
    assert found[f"ROUTER_TRIO_{name}"].startswith(message)
    assert "HUSH" not in str(found)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "CONNECTIONS__MIAN__TOKEN",
            "HUSH",
            "is ignored, since the file has no connection 'mian'; did you mean ROUTER_TRIO_CONNECTIONS__MAIN__TOKEN?",
        ),
        ("CONNECTIONS__ZZZ__FAIL_OPN", "1", "is ignored, since the file has no connection 'zzz'"),
        ("CONNECTIONS__ZZZ", '{"user": "a"}', "is ignored, since the file has no connection 'zzz'"),
        ("CONNECTIONS__ZZZ", '{"user": "a", "password": "HUSH"}', "is ignored, since the file has no connection 'zzz'"),
        ("CONNECTIONS__ZZZ", "{}", "is ignored, since the file has no connection 'zzz'"),
    ],
)
def test_a_connection_that_only_the_environment_names_is_ignored_with_a_warning(
    name: str, value: str, message: str, load: Load
) -> None:
    """A set of variables may serve several routers, whose files have different connections."""
    settings = load(**{name: value})
    assert set(settings.connections) == {"main", "Edge-1"}
    [ignored] = settings.without_effect
    assert ignored.path == f"ROUTER_TRIO_{name}"
    assert ignored.message.startswith(message)
    assert "HUSH" not in str(ignored)


@pytest.mark.parametrize("value", ["5", "null", "true", '["HUSH"]', '["servers"]'])
def test_a_new_connection_that_is_not_a_table_is_refused(value: str, load: Load) -> None:
    found = problems(lambda: load(CONNECTIONS__ZZZ=value))
    assert found == {"connections.zzz": "must be a table of keys and values"}


def test_kubernetes_variables_for_a_service_of_the_same_name_are_ignored(load: Load) -> None:
    service = {
        "SERVICE_HOST": "10.96.0.7",
        "SERVICE_PORT": "9001",
        "SERVICE_PORT_HTTP": "9001",
        "PORT": "tcp://10.96.0.7:9001",
        "PORT_9001_TCP": "tcp://10.96.0.7:9001",
        "PORT_9001_TCP_PROTO": "tcp",
        "PORT_9001_TCP_PORT": "9001",
        "PORT_9001_TCP_ADDR": "10.96.0.7",
    }
    settings = load(**service, ROUTER__NAME="other")
    assert settings.router.name == "other"
    assert settings.without_effect == ()


@pytest.mark.parametrize("name", ["TELEMETRY_LISTEN", "telemetry_listen"])
def test_a_variable_with_one_underscore_too_few_sets_nothing_and_is_reported(name: str, load: Load) -> None:
    settings = load(**{name: "127.0.0.1:1"})
    assert settings.telemetry.listen == "127.0.0.1:9001"
    [ignored] = settings.without_effect
    assert ignored.path == f"ROUTER_TRIO_{name}"
    assert ignored.message == "is ignored, since it has no '__'; write ROUTER_TRIO_TELEMETRY__LISTEN to set that key"


def test_a_name_that_fits_two_connections_is_refused(load: Load) -> None:
    text = '[connections.a-b]\n[connections.A_B]\nservers = ["host"]\n'
    found = problems(lambda: load(text, CONNECTIONS__A_B__FAIL_OPEN="true"))
    assert found == {"ROUTER_TRIO_CONNECTIONS__A_B__FAIL_OPEN": "could mean each of 'a-b', 'A_B'; set it in the file"}


@pytest.mark.parametrize(
    ("name", "value", "path", "message"),
    [
        ("CONNECTIONS__MAIN__FAIL_OPEN", "perhaps", "connections.main.fail_open", "must be true or false"),
        ("CONNECTIONS__MAIN__SERVERS", '["ftp://host"]', "connections.main.servers[0]", "'ftp://host' has a scheme"),
        ("CONNECTIONS__MAIN__SERVERS", '{"a": 1}', "ROUTER_TRIO_CONNECTIONS__MAIN__SERVERS", "has the wrong form"),
        ("CONNECTIONS__MAIN__FAIL_OPN", "1", "connections.main.fail_opn", "unknown key; did you mean"),
        ("ROUTER__NAM", "x", "router.nam", "unknown key; did you mean 'name'?"),
        ("ROUTES__0__FROM__SUBJCT", "x", "routes[0].from.subjct", "unknown key; did you mean 'subject'?"),
        ("ROUTES__0__FROM__SUBJECT", "a..b", "routes[0].from.subject", "subject 'a..b'"),
        ("CONNECTIONS__MAIN", '{"fail_opn": true}', "connections.main.fail_opn", "unknown key; did you mean"),
        ("ROUTES", '[{"nam": 1}]', "routes[0].nam", "unknown key; did you mean 'name'?"),
        ("CONNECTIONS__MAIN__RECONNECT_DELAY", "5", "connections.main.reconnect_delay", "'5' has no unit"),
    ],
)
def test_a_bad_value_is_reported_with_its_variable(name: str, value: str, path: str, message: str, load: Load) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(**{name: value})
    found = {problem.path: problem for problem in caught.value.problems}
    assert found[path].message.startswith(message)
    assert path == f"ROUTER_TRIO_{name}" or found[path].place.startswith(f"set by ROUTER_TRIO_{name}")


def test_problems_of_file_and_environment_are_reported_together(load: Load, tmp_path: Path) -> None:
    text = FILE.replace('reconnect_delay = "2s"', 'reconnect_delay = 2\nconect_timeout = "1s"')
    with pytest.raises(ConfigurationError) as caught:
        load(text, ROUTER__NAME__X="x", ROUTES__0__TO__0__CONNECTION="mian")
    file = tmp_path / "router.toml"
    assert str(caught.value).splitlines() == [
        f"{file}: connections.main.reconnect_delay: has no unit; write '2s' for seconds or '2ms' (line 4)",
        f"{file}: connections.main.conect_timeout: unknown key; did you mean 'connect_timeout'? (line 5)",
        f"{file}: ROUTER_TRIO_ROUTER__NAME__X: sets nothing; did you mean ROUTER_TRIO_ROUTER__NAME?",
        f"{file}: routes[0].to[0].connection: there is no connection 'mian'; did you mean 'main'? "
        "(set by ROUTER_TRIO_ROUTES__0__TO__0__CONNECTION, route 'a')",
    ]


@pytest.mark.parametrize("text", ["router = 5", "connections = 5", "connections = { main = 5 }", "routes = [5]"])
def test_a_file_of_the_wrong_shape_is_reported_and_not_its_variables(text: str, load: Load) -> None:
    found = problems(
        lambda: load(
            text + "\n",
            ROUTER__NAME="x",
            **({"CONNECTIONS__MAIN__FAIL_OPEN": "1"} if "connections" in text else {}),
            **({"ROUTES__0__NAME": "x"} if "routes" in text else {}),
        )
    )
    assert "must be a table of keys and values" in found.values()
    assert not [path for path in found if path.startswith("ROUTER_TRIO_")]


def test_pydantic_settings_is_imported_only_if_a_variable_has_the_prefix(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(FILE)
    code = f"""
import sys
from router_trio.settings import Settings
Settings.load({str(path)!r}, environ={{"OTHER_ROUTER_TRIO_X": "1", "ROUTER": "2"}})
before = "pydantic_settings" in sys.modules
Settings.load({str(path)!r}, environ={{"ROUTER_TRIO_ROUTER__NAME": "x"}})
print(before, "pydantic_settings" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_variable_sets_one_filter_or_a_list_of_them(load: Load) -> None:
    text = """
        [connections.main]
        servers = ["nats://127.0.0.1:4222"]
        [[routes]]
        name = "r"
        from = { stream = "S", durable = "d", filter = "a.*" }
        to = [{ subject = "out" }]
    """
    several = load(text, ROUTES__0__FROM__FILTER='["b.*", "c"]')
    assert several.routes[0].source.filters == ("b.*", "c")
    assert load(text, ROUTES__0__FROM__FILTER="b.*").routes[0].source.filters == ("b.*",)
