"""`router-trio check`, and its parts shared with other commands: problems, warnings, notes, and standard input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from router_trio import Settings
from tests.integration.test_commands import CONFIG
from tests.support.command import COMMAND, command, environment, in_process


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "router.toml"
    path.write_text(CONFIG)
    return path


def ok(config: Path, what: str = "1 connection, 1 route") -> str:
    """Return the last lines of `check` for a configuration, with the hash that `/status` shows."""
    return f"ok ({what}), config hash {Settings.load(config, environ={}).content_hash}"


def test_check_of_a_good_configuration(config: Path) -> None:
    done = command("check", config, cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{config}: {ok(config)}\n"


def test_check_shows_how_failed_messages_are_treated(config: Path) -> None:
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
    done = in_process("check", config, cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    warning, promise, last = done.stdout.splitlines()
    assert warning.startswith(f"{config}: routes[0].from.max_deliver: warning: is ignored")
    assert promise == f"{config}: route orders: at least once; at most 5 attempts; dead letters in dead.*"
    assert last == f"{config}: {ok(config)}"


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
    ("content", "error"),
    [
        (b"[router\n", "not valid TOML"),
        (b"[router]\nname = '\xff'\n", "not UTF-8 at line 2"),
        (b"", "connections"),
        (None, "there is no such file"),
    ],
)
def test_check_of_an_invalid_file(content: bytes | None, error: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    done = in_process("check", path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (78, "")
    assert done.stdout.startswith(f"{path}: ")
    assert error in done.stdout


def test_check_takes_the_environment_into_account(config: Path) -> None:
    env = {"ROUTER_TRIO_CONNECTIONS__MAIN__RECONNECT_DELAY": "soon"}
    done = in_process("check", config, cwd=config.parent, env=env)
    assert done.returncode == 78
    assert "connections.main.reconnect_delay: " in done.stdout


HANDLER = 'handler = "my_handlers:enrich"\nfrom'


def test_check_imports_handlers_from_the_working_directory(config: Path) -> None:
    config.write_text(CONFIG.replace("from", HANDLER))
    (config.parent / "my_handlers.py").write_text("def enrich(message):\n    return message\n")
    # Started by a path, as a console script is: then Python doesn't add the working directory to its path by itself.
    start = config.parent / "elsewhere" / "router-trio"
    start.parent.mkdir()
    start.write_text("import sys\nfrom router_trio.cli import main\nsys.exit(main())\n")
    done = command("check", config, cwd=config.parent, python=[sys.executable, str(start)])
    assert (done.returncode, done.stdout) == (0, f"{config}: {ok(config)}\n")


@pytest.mark.parametrize(
    ("module", "error"),
    [
        (None, "can't import 'my_handlers'"),
        ("other = 1\n", "has no function 'enrich'"),
        ("enrich = 1\n", "has no function 'enrich'"),
        ("def enrih(message):\n    pass\n", "has no function 'enrich'; did you mean 'enrih'?"),
        ("enrih = 1\ndef price(message):\n    pass\n", "has no function 'enrich'; there is: 'price'"),
        ("1 / 0\n", "raised ZeroDivisionError: division by zero"),
        ("def enrich(:\n", "raised SyntaxError"),
        (
            "def enrich(message, context, more):\n    pass\n",
            "takes (message, context, more); give all other parameters",
        ),
    ],
)
def test_check_names_a_handler_that_cannot_be_imported(module: str | None, error: str, config: Path) -> None:
    config.write_text(CONFIG.replace("from", HANDLER))
    if module is not None:
        (config.parent / "my_handlers.py").write_text(module)
    done = in_process("check", config, cwd=config.parent)
    assert (done.returncode, done.stderr) == (78, "")
    assert done.stdout.startswith(f"{config}: routes[0].handler: ")
    assert error in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_check_reads_router_toml_by_default(config: Path) -> None:
    done = in_process("check", cwd=config.parent)
    assert (done.returncode, done.stdout) == (0, f"router.toml: {ok(config)}\n")


@pytest.mark.parametrize("text", [CONFIG, CONFIG.replace("wildcard(2)", "wildcard(3)")])
def test_a_configuration_from_standard_input(text: str, tmp_path: Path) -> None:
    path = tmp_path / "same.toml"
    path.write_text(text)

    def given(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            input=text,
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    checked = given("check", "-")
    explained = given("explain", "-", "orders.7.new", "--json")
    if text == CONFIG:
        assert (checked.returncode, checked.stdout) == (0, f"<stdin>: {ok(path)}\n")
        assert json.loads(explained.stdout)["routes"][0]["destinations"][0]["subject"] == "eu.7.new"
    else:
        assert checked.returncode == explained.returncode == 78
        assert checked.stdout.startswith("<stdin>: routes[0].to[0].subject: ")
        assert "(line 8, route 'eu-orders')" in checked.stdout


def test_a_lone_hyphen_is_a_subject_where_one_is_expected(config: Path) -> None:
    done = in_process("explain", config, "--", "-", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("message -: ")


def test_check_warns_of_no_routes_and_of_a_variable_with_one_underscore_too_few(config: Path) -> None:
    config.write_text('[connections.main]\nservers = ["nats://127.0.0.1:4222"]\n')
    done = in_process("check", config, cwd=config.parent, env={"ROUTER_TRIO_ROUTER_NAME": "x", "ROUTER_TRIO_PORT": "1"})
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{config}: ROUTER_TRIO_ROUTER_NAME: warning: is ignored, since it has no '__'; write "
        "ROUTER_TRIO_ROUTER__NAME to set that key",
        f"{config}: routes: warning: there are none, so nothing is routed; add [[routes]], or routes in code",
        f"{config}: {ok(config, '1 connection, 0 routes')}",
    ]


def test_a_feature_that_needs_a_newer_server_is_noted(config: Path) -> None:
    config.write_text(CONFIG.replace("eu.{{wildcard(1)}}", "eu.{{left(1,2)}}"))
    note = (
        "left needs nats-server 2.15 in a mapping of the server's own; here the router computes it, with every server"
    )
    done = in_process("check", config, cwd=config.parent)
    assert f"{config}: routes[0].to[0].subject: note: {note} (line 8, route 'eu-orders')\n" in done.stdout
    explained = in_process("explain", config, "orders.777.new", cwd=config.parent)
    assert f"     note: {note}\n" in explained.stdout


CIRCLE = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "there"
from = { subject = "a.*" }
to = [ { subject = "b.{{wildcard(1)}}" } ]
[[routes]]
name = "back"
from = { subject = "b.*" }
to = [ { subject = "a.{{wildcard(1)}}" } ]
"""


def test_check_refuses_a_circle_that_a_start_does_not_detect(config: Path) -> None:
    config.write_text(CIRCLE)
    done = in_process("check", "router.toml", cwd=config.parent)
    assert (done.returncode, done.stderr) == (78, "")
    assert done.stdout == (
        "router.toml: routes[0].to[0].subject: messages of route 'there' return to it: it sends 'b.*' to route "
        "'back', which sends 'a.*' to route 'there'; send to other subjects, narrow a source, or set hop_limit on one "
        "of these routes (line 7, route 'there')\n"
    )
    config.write_text(CIRCLE.replace('name = "back"', 'name = "back"\nwhen = "size > 7"'))
    done = in_process("check", "router.toml", cwd=config.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "router.toml: routes[0].to[0].subject: warning: messages of route 'there' may return to it: "
    )
    config.write_text(CIRCLE)
    assert in_process("explain", "router.toml", "a.x", cwd=config.parent).returncode == 0
