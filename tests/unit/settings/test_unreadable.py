"""No configuration raises anything but ConfigurationError, which names the file and what to correct."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_trio.cli import main
from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from router_trio.settings.reading import load
from router_trio.settings.reading.load import MAX_DEPTH

VALID = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "r"
from = { subject = "in.*" }
to = [ { subject = "out" } ]
"""
LARGE = "larger than an integer of 64 bits"
DEEP = f"nested more than {MAX_DEPTH} levels deep"
TEXTS = {
    "an integer of 4,300 digits": (f"{VALID}[router]\nworkers = {'9' * 4301}", "a number at line 9 is " + LARGE),
    "a negative one": (f"{VALID}[router]\nworkers = -{'1_' * 4301}1", LARGE),
    "one of fewer digits": (f"{VALID}[router]\nworkers = {'9' * 4299}", "router.workers: is " + LARGE),
    "a hexadecimal one": (f"{VALID}[router]\nworkers = 0x{'f' * 50_000}", "router.workers: is " + LARGE),
    "a duration without a unit": (f"{VALID}[router]\nshutdown_timeout = 0x{'f' * 50_000}", "router.shutdown_timeout"),
    "one in a list": (f"{VALID}[x]\ny = [1, [0o{'7' * 9_000}]]", "x.y[1][0]: is " + LARGE),
    "lists in lists": (f"{VALID}[x]\ny = {'[' * 400}{']' * 400}", DEEP),
    "very many of them": (f"{VALID}[x]\ny = {'[' * 100_000}{']' * 100_000}", DEEP),
    "tables in tables": (f"{VALID}[x]\ny = {'{a=' * 100_000}1{'}' * 100_000}", DEEP),
    "a long dotted key": (f"{VALID}[{'.'.join(['x'] * 5_000)}]\ny = 1", DEEP),
    "a dotted value": (f"{VALID}[x]\n{'.'.join(['x'] * 500)} = 1", DEEP),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_file_is_refused_with_its_name(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, detail = TEXTS[what]
    path = tmp_path / "router.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(path, environ={})
    assert detail in str(caught.value)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())
    assert len(str(caught.value)) < 1000
    for arguments in (["check", str(path)], ["diff", str(path), str(path)]):
        assert main(arguments) == 78
        shown = capsys.readouterr()
        assert f"{path}: " in shown.out + shown.err


@pytest.mark.parametrize("what", TEXTS)
def test_a_file_of_several_is_refused_with_its_name(what: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TEXTS[what][0])
    (tmp_path / "b.toml").write_text("[router]\nname = 'x'\n")
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(tmp_path, environ={})
    assert str(tmp_path / "a.toml") in str(caught.value)


@pytest.mark.parametrize("value", ["9" * 4301, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000])
@pytest.mark.parametrize("name", ["ROUTER_TRIO_ROUTES", "ROUTER_TRIO_ROUTER__WORKERS", "ROUTER_TRIO_ROUTES__0__TO"])
def test_a_variable_is_refused(name: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(VALID)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(path, environ={name: value})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("raised", [MemoryError(), RecursionError(), ValueError("hunter2"), KeyError("hunter2")])
def test_an_unforeseen_error_is_one_of_the_file(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise raised

    monkeypatch.setattr(load, "_decoded", fail)
    path = tmp_path / "router.toml"
    path.write_text(VALID)
    with pytest.raises(ConfigurationError, match="can't be used") as caught:
        Settings.load(path, environ={})
    assert str(path) in str(caught.value)
    assert "hunter2" not in str(caught.value)
