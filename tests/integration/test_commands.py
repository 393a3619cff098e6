"""The commands as a shell sees them: output, errors and exit codes, without a router. `test_run` has those with one.

Of each command one call is a process, and those that depend on how a process starts or ends; all others have none.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from router_trio.events import catalogue
from tests.support.command import COMMAND, command, environment, in_process

COMMANDS = (
    "init",
    "run",
    "demo",
    "check",
    "diff",
    "explain",
    "test",
    "permissions",
    "contract",
    "schema",
    "completion",
)

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
    done = in_process(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"For example:\n\n    router-trio {name}" in done.stdout
    assert done.stderr == ""


def test_help_lists_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert "78 invalid configuration" in done.stdout


def test_version(tmp_path: Path) -> None:
    done = command("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("router-trio")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["serve"], "unknown command 'serve'"),
        (["check", "router.toml", "--fast"], "unknown option --fast"),
        (["run", "--embedded-nats=perhaps"], "--embedded-nats"),
        (["run", "--embedded-nats", "--data", ""], "it is empty; give a directory, or '.' for the working directory"),
        (["run", "--data", "site"], "--data is the directory of the embedded nats-server; add --embedded-nats"),
        (["explain"], "explain needs CONFIG; router-trio explain --help shows an example"),
        (["explain", "router.toml"], "explain needs SUBJECT; router-trio explain --help shows an example"),
        (["demo", "--duration"], "--duration needs a value; router-trio demo --help shows an example"),
        (["contract", "extra"], "extra"),
        (["demo", "--duration", "20"], "'20' has no unit"),
        (["demo", "--duration", "1s"], "give at least 3s"),
        (["explain", "router.toml", "orders..7"], "empty token"),
        (["explain", "router.toml", "orders.*"], "wildcard"),
        (["explain", "router.toml", "a.b", "--header", "novalue"], "K=V"),
        (["explain", "router.toml", "a.b", "--header", "bad name=1"], "'bad name'"),
        (["explain", "router.toml", "a.b", "--header", "Name=two\nlines"], "CR, LF or NUL"),
    ],
)
def test_wrong_usage(arguments: list[str], error: str, config: Path) -> None:
    done = in_process(*arguments, cwd=config.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("router-trio: error: ")
    assert error in done.stderr


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
    done = in_process("test", "router.toml", "--only", "to Europe", cwd=config.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok      to Europe\n1 passed, 0 failed\n", "")
    done = in_process("test", "router.toml", cwd=config.parent)
    assert (done.returncode, done.stderr) == (1, "")
    assert '\n    -   "id": 8\n    +   "id": 7\n' in done.stdout
    assert done.stdout.endswith("\n1 passed, 1 failed\n")
    done = in_process("test", "router.toml", "--json", cwd=config.parent)
    assert (done.returncode, done.stderr) == (1, "")
    assert [one["passed"] for one in json.loads(done.stdout)["tests"]] == [True, False]


# --- explain ---


def test_explain_as_text(config: Path) -> None:
    done = in_process("explain", config, "orders.7.created", "--header", "A=b", "--data", "-x", cwd=config.parent)
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


def test_explain_of_a_subject_that_no_route_takes(config: Path) -> None:
    done = in_process("explain", config, "nobody.asks", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no route takes it" in done.stdout
    done = in_process("explain", config, "nobody.asks", "--json", cwd=config.parent)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"subject": "nobody.asks", "routes": []})


def test_explain_with_a_bad_configuration_keeps_stdout_clean(config: Path) -> None:
    config.write_text(CONFIG + "colour = 1\n")
    done = command("explain", config, "a.b", "--json", cwd=config.parent)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"{config}: routes[0].colour: unknown key")


# --- contract and schema ---


def test_contract_in_json_is_generated_from_the_code(tmp_path: Path) -> None:
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


def test_contract_as_text(tmp_path: Path) -> None:
    done = in_process("contract", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "router_nats_pending_operations_count" in done.stdout
    assert "NATS_QUEUE_FULL" in done.stdout


def test_schema_prints_the_schema_of_the_configuration(tmp_path: Path) -> None:
    done = command("schema", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"router", "telemetry", "connections", "routes"} <= json.loads(done.stdout)["properties"].keys()


# --- stdout that is closed or full ---


def test_a_closed_stdout_gives_no_traceback(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [*COMMAND, "contract"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment()
    )
    assert started.stdout is not None
    started.stdout.close()
    _, errors = started.communicate(timeout=20)
    assert (started.returncode, errors) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "contract"], stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=environment(), check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"router-trio: error: can't write the output: No space left on device\n"


@pytest.mark.parametrize("first", ["{{wildcard(2)}}", "$1"])
def test_check_warns_of_a_destination_whose_first_token_a_sender_chooses(first: str, config: Path) -> None:
    config.write_text(re.sub('subject = "eu[^"]*"', f'subject = "{first}.x"', CONFIG))
    done = in_process("check", "router.toml", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    warning, last = done.stdout.splitlines()
    assert warning.startswith("router.toml: routes[0].to[0].subject: warning: the first token of ")
    assert last.startswith("router.toml: ok (1 connection, 1 route), config hash ")


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


def test_diff_names_the_problem_of_either_file(config: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(CONFIG.replace("queue", "queues"))
    for pair in ((config, wrong), (wrong, config)):
        done = in_process("diff", *map(str, pair), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (78, "")
        assert f"{wrong}: routes[0].from.queues: unknown key" in done.stderr
