"""Commands answer an unknown name alike: with the one that is meant, or with those there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_trio.cli import main
from router_trio.cli.command_line import WRONG_USAGE, parser_of_all
from router_trio.errors.quotes import LONGEST_QUOTE
from router_trio.settings.problems import MOST_NAMED, no_route
from router_trio.states import RouteState
from router_trio.telemetry.tap.tap import TapRefused, TapRequest, find_route
from router_trio.testing import FakeBroker
from tests.support.world import core, world

COUNT = 30

CONNECTION = '[connections.orders-{number}]\nservers = ["nats://127.0.0.1:4222"]\n'

ROUTE = """
[[routes]]
name = "orders-{number}"
from = {{ connection = "orders-0", stream = "IN{number}", durable = "r" }}
to = [{{ connection = "orders-0", subject = "out.{number}" }}]
"""

TEST = """
[[tests]]
name = "orders-{number}"
message = {{ subject = "in.{number}" }}
expect = []
"""

ROUTE_OF = {
    "audit": ("router.toml", "{}"),
    "dead-letters": ("router.toml", "{}", "list"),
    "diff": ("router.toml", "router.toml", "{}", "--last", "1"),
    "partitions": ("router.toml", "{}"),
    "pause": ("router.toml", "{}", "--for", "1m"),
    "position": ("router.toml", "{}", "--consumer", "c"),
    "replay": ("router.toml", "{}", "--from", "1"),
    "resume": ("router.toml", "{}"),
    "schedules": ("router.toml", "{}", "list"),
}
"""The arguments of each command that takes the name of a route of a configuration."""

OTHER_NAME_OF = {
    "find": ("router.toml", "in.1", "--as", "{}=before"),
    "permissions": ("router.toml", "--connection", "{}"),
    "test": ("router.toml", "--only", "{}"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = "".join(section.format(number=number) for section in (CONNECTION, ROUTE, TEST) for number in range(COUNT))
    (tmp_path / "router.toml").write_text(text)
    return tmp_path


def answer(command: str, arguments: tuple[str, ...], name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([command, *(argument.format(name) for argument in arguments)]) == WRONG_USAGE
    return capsys.readouterr().err


def test_the_commands_that_take_a_name_are_here() -> None:
    (commands,) = (action.choices for action in parser_of_all()._actions if isinstance(action.choices, dict))
    takes = {name for name, parser in commands.items() for one in parser._actions if "ROUTE" in (one.metavar or "")}
    assert takes == {*ROUTE_OF, "find", "tap"}
    takes = {name for name, parser in commands.items() for one in parser._actions if one.dest in ("connection", "only")}
    assert takes == {"permissions", "test"}


@pytest.mark.parametrize("command", ROUTE_OF | OTHER_NAME_OF)
def test_a_name_that_is_similar_to_one_is_corrected(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = answer(command, (ROUTE_OF | OTHER_NAME_OF)[command], "odrers-17", capsys)
    assert "; did you mean 'orders-17'?\n" in told


@pytest.mark.parametrize("command", ROUTE_OF | OTHER_NAME_OF)
def test_a_name_that_is_similar_to_none_is_answered_with_those_there_are(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = answer(command, (ROUTE_OF | OTHER_NAME_OF)[command], "zzz", capsys)
    listed = ", ".join(f"'orders-{number}'" for number in range(MOST_NAMED))
    assert f"; there is: {listed} and {COUNT - MOST_NAMED} more\n" in told
    if command in ROUTE_OF and command != "diff":  # which has the routes of two configurations
        assert "there is no route 'zzz'; there is: " in told


def test_a_tap_gets_the_answer_of_the_commands() -> None:
    routes = {f"orders-{number}": RouteState(f"orders-{number}", "main", ["out"]) for number in range(COUNT)}
    for name in ("odrers-17", "zzz"):
        with pytest.raises(TapRefused) as refused:
            find_route(TapRequest(name), routes)
        assert str(refused.value) == no_route(name, routes)


@pytest.mark.parametrize("name", ["r" * 5000, "zzz\n" * 5000])
def test_an_answer_is_short_and_on_one_line_however_long_the_names_are(name: str) -> None:
    told = no_route(name, ["\x1b[2J" * 1000 + str(number) for number in range(1000)])
    assert told.isprintable()
    assert len(told) < (MOST_NAMED + 2) * (LONGEST_QUOTE + 10) * 2


async def test_the_methods_of_a_router_answer_as_the_commands_do() -> None:
    broker = FakeBroker()
    broker.add_stream("IN", ["in"])
    copy = {
        "name": "copy",
        "from": {"connection": "main", "stream": "IN", "durable": "r"},
        "to": [{"connection": "main", "subject": "out", "jetstream": False}],
    }
    async with world([copy, core("other", "elsewhere")], brokers={"main": broker}) as w:
        with pytest.raises(ValueError, match="no route 'route' reads a stream; there is: 'copy'"):
            await w.live.audit("route")
        with pytest.raises(ValueError, match="there is no route 'copi'; did you mean 'copy'"):
            await w.live.find("in", former_names={"copi": "x"})
