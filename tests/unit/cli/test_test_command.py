"""Output and exit codes of `router-trio test`. `test_examples` covers what it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from router_trio.cli import main
from router_trio.cli.command_line import DONE, FAILED, INVALID_CONFIGURATION, WRONG_USAGE

CONFIG = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]

[[routes]]
name = "eu"
from = { subject = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
"""

TESTS = """
[[tests]]
name = "an order goes to Europe"
message = { subject = "orders.7", json = { id = "7" } }
expect = [ { subject = "eu.7", json = { id = "7" } } ]

[[tests]]
name = "a bill goes nowhere"
message = { subject = "bills.7" }
expect = []
"""

WRONG = """
[[tests]]
name = "wrong"
message = { subject = "orders.7", json = { id = "7" } }
expect = [ { subject = "eu.8" } ]
"""


def command(tmp_path: Path, text: str, *arguments: str) -> int:
    (tmp_path / "router.toml").write_text(text)
    return main(["test", str(tmp_path / "router.toml"), *arguments])


def test_all_tests_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, CONFIG + TESTS) == DONE
    assert capsys.readouterr() == (
        "ok      an order goes to Europe\nok      a bill goes nowhere\n2 passed, 0 failed\n",
        "",
    )


def test_a_failed_test_is_shown_with_its_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, CONFIG + TESTS + WRONG) == FAILED
    told = capsys.readouterr().out
    assert told.endswith("FAILED  wrong\n    - subject: eu.8\n    + subject: eu.7\n2 passed, 1 failed\n")


def test_results_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, CONFIG + TESTS + WRONG, "--json") == FAILED
    [order, bill, wrong] = json.loads(capsys.readouterr().out)["tests"]
    came = {"connection": "main", "subject": "eu.7", "headers": {}, "json": {"id": "7"}}
    assert order == {
        "name": "an order goes to Europe",
        "passed": True,
        "expected": [{"subject": "eu.7", "json": {"id": "7"}}],
        "got": [came],
        "difference": "",
    }
    assert (bill["passed"], bill["expected"], bill["got"]) == (True, [], [])
    assert (wrong["passed"], wrong["got"], wrong["difference"]) == (False, [came], "- subject: eu.8\n+ subject: eu.7")


def test_one_test_is_selected_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, CONFIG + TESTS + WRONG, "--only", "a bill goes nowhere") == DONE
    assert capsys.readouterr().out == "ok      a bill goes nowhere\n1 passed, 0 failed\n"
    assert command(tmp_path, CONFIG + TESTS, "--only", "a bil goes nowhere") == WRONG_USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert "--only 'a bil goes nowhere': there is no test of this name; did you mean 'a bill goes nowhere'?" in told.err


def test_no_tests_is_an_error_with_an_example_that_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    route = CONFIG.replace("orders.*", "orders.*.created")
    assert command(tmp_path, route) == WRONG_USAGE
    told = capsys.readouterr().err
    assert "router.toml has no [[tests]]. Add one" in told
    assert command(tmp_path, route + told[told.index("\n    [[tests]]") :]) == DONE


def test_an_invalid_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, CONFIG + TESTS.replace("expect", "expcet")) == INVALID_CONFIGURATION
    assert "tests[0].expcet" in capsys.readouterr().err


def test_a_handler_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG.replace('name = "eu"', 'name = "eu"\nhandler = "no_such_module:handler"')
    assert command(tmp_path, text + TESTS) == INVALID_CONFIGURATION
    assert "routes[0].handler" in capsys.readouterr().err


def test_differences_are_coloured_in_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert command(tmp_path, CONFIG + WRONG) == FAILED
    told = capsys.readouterr().out
    assert "\x1b[31m    - subject: eu.8\x1b[0m\n" in told
    assert "\x1b[32m    + subject: eu.7\x1b[0m\n" in told


OUTSIDE_OF_TRIO = """
import asyncio, time

def in_a_thread(message):
    time.sleep(2)
    return message.replace(payload=b'{"id": "7", "by": 1}')

async def on_asyncio(message):
    await asyncio.wait_for(asyncio.to_thread(time.sleep, 2), 5)
    return message.replace(payload=b'{"id": "7", "by": 1}')
"""


@pytest.mark.parametrize("handler", ["in_a_thread", "on_asyncio"])
def test_a_handler_outside_of_trio_has_the_time_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], handler: str
) -> None:
    (tmp_path / "outside_of_trio.py").write_text(OUTSIDE_OF_TRIO)
    monkeypatch.syspath_prepend(tmp_path)
    how = "thread = true" if handler == "in_a_thread" else 'loop = "asyncio"'
    route = CONFIG.replace('name = "eu"', f'name = "eu"\nhandler = "outside_of_trio:{handler}"\n{how}')
    wants = TESTS.replace('"eu.7", json = { id = "7" }', '"eu.7", json = { id = "7", by = 1 }')
    assert command(tmp_path, route + wants) == DONE, capsys.readouterr().out
