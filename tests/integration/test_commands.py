"""The commands as a shell sees them: output, errors and exit codes, without a router. `test_run` has those with one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from router_trio.events import catalogue
from tests.support.command import COMMAND, command, environment

COMMANDS = ("run", "demo", "check", "diff", "explain", "test", "contract", "schema")

CONFIG = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]

[[routes]]
name = "eu-orders"
from = { subject = "orders.*.*", queue = "routers" }
to = [ { subject = "eu.{{wildcard(1)}}.{{wildcard(2)}}", jetstream = true } ]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "router.toml"
    path.write_text(CONFIG)
    return path


# --- help and usage ---


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_shows_an_example(name: str, tmp_path: Path) -> None:
    done = command(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"For example:\n\n    router-trio {name}" in done.stdout
    assert done.stderr == ""


def test_help_lists_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name}: " in done.stdout
    assert "78 invalid configuration" in done.stdout


def test_version(tmp_path: Path) -> None:
    done = command("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("router-trio")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve"], 'Unknown command "serve"'),
        (["check", "router.toml", "--fast"], "Unknown option: --fast"),
        (["run", "--embedded-nats=perhaps"], "--embedded-nats"),
        (["check"], "CONFIG"),
        (["explain", "router.toml"], "SUBJECT"),
        (["contract", "extra"], "extra"),
        (["demo", "--duration", "20"], "'20' has no unit"),
        (["demo", "--duration", "1s"], "3s at least"),
        (["explain", "router.toml", "orders..7"], "empty token"),
        (["explain", "router.toml", "orders.*"], "wildcard"),
        (["explain", "router.toml", "a.b", "--header", "novalue"], "K=V"),
        (["explain", "router.toml", "a.b", "--header", "bad name=1"], "'bad name'"),
        (["explain", "router.toml", "a.b", "--header", "Name=two\nlines"], "CR, LF or NUL"),
    ],
)
def test_wrong_usage(arguments: list[str], told: str, config: Path) -> None:
    done = command(*arguments, cwd=config.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("router-trio: error: ")
    # Before version 5, cyclopts put what it does not know in quotes everywhere.
    assert told.replace('"', "") in done.stderr.replace('"', "")


# --- check ---


def test_check_of_a_good_configuration(config: Path) -> None:
    done = command("check", config, cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{config}: ok (1 connection, 1 route)\n"


def test_check_says_what_becomes_of_messages_that_fail(config: Path) -> None:
    config.write_text("""
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "orders"
from = { stream = "ORDERS", durable = "router", filter = "orders.*", max_deliver = 5 }
to = [ { subject = "eu.{{wildcard(1)}}", jetstream = true } ]
retry = { attempts = 5 }
dead_letter = { subject = "dead.{{wildcard(1)}}" }
""")
    done = command("check", config, cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    warning, told, ok = done.stdout.splitlines()
    assert warning.startswith(f"{config}: routes[0].from.max_deliver: warning: is ignored")
    assert told == f"{config}: route orders: at least once; tried 5 times; dead letters in dead.*"
    assert ok == f"{config}: ok (1 connection, 1 route)"


def test_check_prints_every_problem_on_a_line(config: Path) -> None:
    text = CONFIG.replace("[[routes]]", 'reconect_delay = "1s"\nfail_open = "yes please"\n[[routes]]')
    config.write_text(text.replace("wildcard(2)", "wildcard(7)"))
    done = command("check", "router.toml", cwd=config.parent)
    assert (done.returncode, done.stderr) == (78, "")
    lines = dict(line.split(": ", 2)[1:] for line in done.stdout.splitlines())
    assert all(line.startswith("router.toml: ") for line in done.stdout.splitlines())
    assert lines.keys() == {
        "connections.main.reconect_delay",
        "connections.main.fail_open",
        "routes[0].to[0].subject",
    }
    assert "did you mean 'reconnect_delay'?" in lines["connections.main.reconect_delay"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[router\n", "not valid TOML"),
        (b"[router]\nname = '\xff'\n", "not UTF-8 at line 2"),
        (b"", "connections"),
        (None, "there is no such file"),
    ],
)
def test_check_of_what_is_no_configuration(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    done = command("check", path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (78, "")
    assert done.stdout.startswith(f"{path}: ")
    assert told in done.stdout


def test_check_takes_the_environment_into_account(config: Path) -> None:
    env = {"ROUTER_TRIO_CONNECTIONS__MAIN__RECONNECT_DELAY": "soon"}
    done = command("check", config, cwd=config.parent, env=env)
    assert done.returncode == 78
    assert "connections.main.reconnect_delay: " in done.stdout


HANDLER = 'handler = "my_handlers:enrich"\nfrom'


def test_check_imports_handlers_from_the_working_directory(config: Path) -> None:
    config.write_text(CONFIG.replace("from", HANDLER))
    (config.parent / "my_handlers.py").write_text("def enrich(message):\n    return message\n")
    # Started by a path, as a console script is: then Python doesn't look in the working directory by itself.
    start = config.parent / "elsewhere" / "router-trio"
    start.parent.mkdir()
    start.write_text("import sys\nfrom router_trio.cli import main\nsys.exit(main())\n")
    done = command("check", config, cwd=config.parent, python=[sys.executable, str(start)])
    assert (done.returncode, done.stdout) == (0, f"{config}: ok (1 connection, 1 route)\n")


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (None, "can't import 'my_handlers'"),
        ("other = 1\n", "has no function 'enrich'"),
        ("enrich = 1\n", "has no function 'enrich'"),
        ("1 / 0\n", "raised ZeroDivisionError: division by zero"),
        ("def enrich(:\n", "raised SyntaxError"),
    ],
)
def test_check_names_a_handler_that_can_not_be_had(module: str | None, told: str, config: Path) -> None:
    config.write_text(CONFIG.replace("from", HANDLER))
    if module is not None:
        (config.parent / "my_handlers.py").write_text(module)
    done = command("check", config, cwd=config.parent)
    assert (done.returncode, done.stderr) == (78, "")
    assert done.stdout.startswith(f"{config}: routes[0].handler: ")
    assert told in done.stdout
    assert len(done.stdout.splitlines()) == 1


# --- test ---

TESTS = """
[[tests]]
name = "to Europe"
message = { subject = "orders.7.created", payload = "x" }
expect = [ { subject = "eu.7.created", payload = "x" } ]

[[tests]]
name = "as JSON"
message = { subject = "orders.7.created", json = { id = 7 } }
expect = [ { subject = "eu.7.created", json = { id = 8 } } ]
"""


def test_tests_of_a_configuration(config: Path) -> None:
    config.write_text(CONFIG + TESTS)
    done = command("test", "router.toml", "--only", "to Europe", cwd=config.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok      to Europe\n1 passed, 0 failed\n", "")
    done = command("test", "router.toml", cwd=config.parent)
    assert (done.returncode, done.stderr) == (1, "")
    assert '\n    -   "id": 8\n    +   "id": 7\n' in done.stdout
    assert done.stdout.endswith("\n1 passed, 1 failed\n")
    done = command("test", "router.toml", "--json", cwd=config.parent)
    assert (done.returncode, done.stderr) == (1, "")
    assert [one["passed"] for one in json.loads(done.stdout)["tests"]] == [True, False]


# --- explain ---


def test_explain_for_people(config: Path) -> None:
    done = command("explain", config, "orders.7.created", "--header", "A=b", "--data", "-x", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "message orders.7.created: 2 bytes of payload, 18 bytes of headers\n"
        "route eu-orders takes it from main: orders.*.*, queue group routers\n"
        "  -> main: eu.7.created (JetStream, waits for the PubAck)\n"
    )


def test_explain_in_json_has_the_form_of_the_contract(config: Path) -> None:
    done = command("explain", config, "orders.7.created", "--json", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "subject": "orders.7.created",
        "routes": [{"name": "eu-orders", "destinations": [{"connection": "main", "subject": "eu.7.created"}]}],
    }


def test_explain_of_a_subject_that_nobody_takes(config: Path) -> None:
    done = command("explain", config, "nobody.asks", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no route takes it" in done.stdout
    done = command("explain", config, "nobody.asks", "--json", cwd=config.parent)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"subject": "nobody.asks", "routes": []})


def test_explain_with_a_bad_configuration_keeps_stdout_clean(config: Path) -> None:
    config.write_text(CONFIG + "colour = 1\n")
    done = command("explain", config, "a.b", "--json", cwd=config.parent)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"{config}: routes[0].colour: unknown key")


# --- contract and schema ---


def test_contract_in_json_comes_from_the_code(tmp_path: Path) -> None:
    done = command("contract", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found.keys() == {"metrics", "logs"}
    metrics = {metric["name"]: metric for metric in found["metrics"]}
    assert all(metric.keys() == {"name", "type", "labels", "help"} for metric in found["metrics"])
    assert metrics["router_nats_connection_status"]["type"] == "gauge"
    assert metrics["router_nats_operations_settled_total"]["labels"] == ["connection", "fate"]
    assert metrics["router_route_duration_seconds"]["type"] == "histogram"
    assert all(log.keys() == {"code", "level", "help"} for log in found["logs"])
    assert {kind.code for kind in catalogue()} <= {log["code"] for log in found["logs"]}
    lost = next(log for log in found["logs"] if log["code"] == "NATS_CONNECTION_LOST")
    assert (lost["level"], lost["help"]) == ("ERROR", "An established link was lost.")


def test_contract_for_people(tmp_path: Path) -> None:
    done = command("contract", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "router_nats_pending_operations_count" in done.stdout
    assert "NATS_QUEUE_FULL" in done.stdout


def test_schema_is_one(tmp_path: Path) -> None:
    done = command("schema", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"router", "telemetry", "connections", "routes"} <= json.loads(done.stdout)["properties"].keys()


# --- stdout that does not take it ---


def test_a_reader_that_has_seen_enough_gives_no_traceback(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [*COMMAND, "contract"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment()
    )
    assert started.stdout is not None
    started.stdout.close()
    _, errors = started.communicate(timeout=20)
    assert (started.returncode, errors) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "contract"], stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=environment(), check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"router-trio: error: can't write the output: No space left on device\n"


@pytest.mark.parametrize("first", ["{{wildcard(2)}}", "$1"])
def test_check_warns_of_a_destination_whose_first_token_a_sender_chooses(first: str, config: Path) -> None:
    config.write_text(re.sub('subject = "eu[^"]*"', f'subject = "{first}.x"', CONFIG))
    done = command("check", "router.toml", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    warning, told = done.stdout.splitlines()
    assert warning.startswith("router.toml: routes[0].to[0].subject: warning: the first token of ")
    assert told == "router.toml: ok (1 connection, 1 route)"


# --- diff ---


def test_diff_shows_what_a_reload_would_do(config: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.toml"
    new.write_text(CONFIG.replace('subject = "eu.', 'subject = "europe.').replace("127.0.0.1:4222", "127.0.0.1:4223"))
    done = command("diff", str(config), str(new), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "connection main: changed",
        '    servers: ["nats://127.0.0.1:4222"] -> ["nats://127.0.0.1:4223"]',
        "route eu-orders: changed",
        '    to[0].subject: "eu.{{wildcard(1)}}.{{wildcard(2)}}" -> "europe.{{wildcard(1)}}.{{wildcard(2)}}"',
        "    its connection main changes",
    ]


def test_diff_says_what_is_wrong_with_either_file(config: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(CONFIG.replace("queue", "queues"))
    for pair in ((config, wrong), (wrong, config)):
        done = command("diff", *map(str, pair), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (78, "")
        assert f"{wrong}: routes[0].from.queues: unknown key" in done.stderr
