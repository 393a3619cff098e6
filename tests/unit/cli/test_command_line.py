"""Parsing of command lines, and the errors for arguments that no command accepts."""

from __future__ import annotations

from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from router_trio.cli import main
from router_trio.cli.command_line import COMMANDS, DONE, INVALID_CONFIGURATION, WRONG_USAGE, parse
from router_trio.cli.configuration import CONFIG, STDIN

FLAGS = {"embedded_nats": False, "data": None, "watch": False, "workers": None, "enable_fault_injection": False}


def given(*arguments: str) -> dict[str, Any]:
    """Return the arguments with which the function of a command is called."""
    parsed = parse(arguments[0], arguments[1:])
    assert parsed is not None
    return parsed[1]


@pytest.mark.parametrize(
    ("arguments", "configs", "flags"),
    [
        ([], [CONFIG], {}),
        (["a.toml"], [Path("a.toml")], {}),
        (["a.toml", "--watch", "b.d"], [Path("a.toml"), Path("b.d")], {"watch": True}),
        (["--watch", "-"], [Path(STDIN)], {"watch": True}),
        (["--workers", "4", "a.toml"], [Path("a.toml")], {"workers": 4}),
        (["a.toml", "--workers=256"], [Path("a.toml")], {"workers": 256}),
        (["--embedded-nats", "--data", "a.d"], [CONFIG], {"embedded_nats": True, "data": Path("a.d")}),
        (["--", "--watch"], [Path("--watch")], {}),
        (["--watch", "--", "a.toml"], [Path("a.toml")], {"watch": True}),
        (["a.toml", "--watch", "--"], [Path("a.toml")], {"watch": True}),
        (["a.toml", "--watch", "--", "-b.toml"], [Path("a.toml"), Path("-b.toml")], {"watch": True}),
        (["a.toml", "--", "b.toml", "--watch"], [Path("a.toml"), Path("b.toml"), Path("--watch")], {}),
        (
            ["--enable-fault-injection", "--embedded-nats"],
            [CONFIG],
            {"enable_fault_injection": True} | {"embedded_nats": True},
        ),
    ],
)
def test_run_takes_files_and_options_in_any_order(
    arguments: list[str], configs: list[Path], flags: dict[str, Any]
) -> None:
    assert given("run", *arguments) == {"configs": configs} | FLAGS | flags


def test_the_last_argument_of_explain_is_the_subject() -> None:
    assert given("explain", "a.toml", "b.d", "--json", "in.x")["subject"] == "in.x"
    assert given("explain", "a.toml", "--", "-")["subject"] == "-"
    assert given("explain", "a.toml", "--", "--")["subject"] == "--"
    assert given("explain", "--", "a.toml", "--", "in.x")["configs"] == [Path("a.toml"), Path("--")]
    assert given("explain", "-", "in.x")["configs"] == [Path(STDIN)]
    assert given("explain", "a.toml", "--json", "b.d", "--", "-x")["configs"] == [Path("a.toml"), Path("b.d")]


def test_arguments_are_optional_where_a_command_takes_none() -> None:
    assert given("demo", "--duration", "4s") == {"duration": "4s"}
    assert given("schema", "--") == {}


def test_a_value_may_begin_with_a_hyphen() -> None:
    message = given("explain", "a.toml", "in.x", "--data", "-x", "--header", "-A=b", "--header=C=--", "--expect", "")
    assert (message["data"], message["header"], message["expect"]) == ("-x", ["-A=b", "C=--"], [""])


def test_repeatable_arguments_may_stand_before_or_after_options() -> None:
    message = given("dead-letters", "a.toml", "orders", "--dry-run", "redrive", "7", "9")
    assert (message["action"], message["sequence"], message["dry_run"]) == ("redrive", [7, 9], True)


@pytest.mark.parametrize(
    "line",
    ["run -", "check -", "explain - in.x", "test -", "diff - b.toml", "diff a.toml -", "dead-letters - orders list"],
)
def test_a_lone_hyphen_is_standard_input_for_each_command(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text('[connections.main]\nservers = ["nats://a"]\n')
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"[rooter]\n")))
    assert main(line.split()) == INVALID_CONFIGURATION
    printed = capsys.readouterr()
    assert "<stdin>: rooter: unknown key; did you mean 'router'? (line 1)\n" in printed.out + printed.err


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == DONE
    assert f"For example:\n\n    router-trio {name}" in capsys.readouterr().out


def test_no_arguments_print_the_help_of_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == DONE
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chek a.toml", "unknown command 'chek'; did you mean check?\nRun router-trio --help for a list of commands."),
        ("serve", "unknown command 'serve'; the commands are init, run, demo, "),
        ("--watch", "unknown command '--watch'; the commands are init, "),
        ("run --wath", "unknown option --wath; did you mean --watch?\nRun router-trio run --help for usage."),
        ("run --wat", "unknown option --wat; did you mean --watch?"),
        ("explain a.toml in.x --heder x=1", "unknown option --heder; did you mean --header?"),
        ("contract extra", "unexpected argument 'extra'\nRun router-trio contract --help for usage."),
        ("contract -- -x", "unexpected argument '-x'\n"),
        ("contract --jsn -- -x", "unknown option --jsn; did you mean --json?\n"),
        ("contract -- --", "unexpected argument '--'\n"),
        ("diff - -", "OLD and NEW can't both be -, since standard input is read once"),
        ("diff a.toml", "diff needs NEW; router-trio diff --help shows an example"),
        ("explain", "explain needs CONFIG; router-trio explain --help shows an example"),
        ("explain a.toml", "explain needs SUBJECT; router-trio explain --help shows an example"),
        ("run --workers", "--workers needs a value; router-trio run --help shows an example"),
        ("run --workers --watch", "--workers needs a value; router-trio run --help shows an example"),
        ("run --workers 0", "--workers: 0 is too small; give at least 1\n"),
        ("run --workers 257", "--workers: 257 is too large; give at most 256\n"),
        ("run --workers=two", "--workers: 'two' is not a whole number\n"),
        ("run --workers 2 --workers 3", "--workers is given more than once\n"),
        ("run --watch=yes", "--watch takes no value, but got 'yes'\n"),
        ("dead-letters a.toml r lits", "ACTION: 'lits' is not one of list, show, redrive, purge; did you mean list?\n"),
        ("dead-letters a.toml r show x", "SEQUENCE: 'x' is not a whole number\n"),
        ("dead-letters a.toml r show -1", "SEQUENCE -1: must be at least 1, as list prints it"),
        ("dead-letters a.toml r list --limit 0", "--limit: 0 is too small; give at least 1\n"),
        ("completion tcsh", "SHELL: 'tcsh' is not one of bash, zsh, fish\n"),
    ],
)
def test_an_invalid_command_line_is_refused_with_a_hint(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == WRONG_USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"router-trio: error: {message}")
