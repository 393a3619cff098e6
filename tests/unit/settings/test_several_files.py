"""A configuration of several files and folders: how they are merged, and where each mistake is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from router_trio.errors import ConfigurationError, Problem
from router_trio.settings import Settings, json_schema

BASE = """
[router]
name = "both"
[connections.main]
servers = ["nats://127.0.0.1:4222"]
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a file below a temporary folder and returns its path."""

    def write_text(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        return path

    return write_text


def route(name: str, source: str = "in", to: str = "out", **keys: str) -> str:
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'[[routes]]\nname = "{name}"\n{more}from = {{ subject = "{source}" }}\nto = [ {{ subject = "{to}" }} ]\n'


def load(*paths: Path, **environ: str) -> Settings:
    return Settings.load(*paths, environ={f"ROUTER_TRIO_{key}": value for key, value in environ.items()})


def lines(*paths: Path, **environ: str) -> list[str]:
    """Return the lines of the refusal, with the names of the files alone."""
    with pytest.raises(ConfigurationError) as caught:
        load(*paths, **environ)
    return [line.replace(f"{paths[0].parent}/", "") for line in str(caught.value).splitlines()]


def problems_of(*paths: Path) -> list[str]:
    """Return the lines of the refusal without line numbers and routes."""
    return [re.sub(r" \(line [^)]*\)$", "", line) for line in lines(*paths)]


def test_tables_are_merged_and_lists_joined_in_order(write: Write) -> None:
    base = write("base.toml", BASE + route("a"))
    write("more.d/2.toml", route("c") + '[connections.main]\nfail_open = true\n[telemetry]\nlisten = ""\n')
    write("more.d/1.toml", route("b") + '[connections.edge]\n[[streams]]\nname = "S"\nsubjects = ["s"]\n')
    for other in (".hidden.toml", "notes.txt", "old.toml.bak"):
        write(f"more.d/{other}", "this is no TOML")
    refused = lines(base, base.parent / "more.d")
    assert "base.toml: routes[0].from.connection: missing; there are several connections" in refused[0]
    (base.parent / "more.d" / "1.toml").write_text(route("b") + '[[streams]]\nname = "S"\nsubjects = ["s"]\n')
    settings = load(base, base.parent / "more.d")
    assert [one.name for one in settings.routes] == ["a", "b", "c"]
    assert [one.name for one in settings.streams] == ["S"]
    assert settings.connections["main"].fail_open
    assert settings.connections["main"].servers
    assert (settings.router.name, settings.telemetry.listen) == ("both", "")


def test_a_folder_alone_is_a_configuration(write: Write) -> None:
    folder = write("router.d/base.toml", BASE).parent
    write("router.d/routes.toml", route("a", hop_limit='"many"'))
    assert lines(folder) == [
        "router.d/routes.toml: routes[0].hop_limit: must be a whole number, without quotes (line 3, route 'a')"
    ]


def test_each_mistake_is_named_with_its_file_and_its_place_there(write: Write) -> None:
    base = write("base.toml", BASE.replace("[router]", "[router]\nnmae = 1") + route("a"))
    more = write("more.toml", route("b", to="in") + route("c", when='"size >"') + "[connections.main]\nuser = 'u'\n")
    found = lines(base, more)
    assert [line.split(": ", 2)[:2] for line in found if not line.startswith(" ")] == [
        ["base.toml", "router.nmae"],
        ["base.toml", "connections.main.password"],
        ["more.toml", "routes[0].to[0].subject"],
        ["more.toml", "routes[1].when"],
    ]


def test_a_key_given_twice_is_reported_with_both_places(write: Write) -> None:
    base = write("base.toml", BASE + route("a") + route("b"))
    more = write("more.toml", '[router]\nname = "other"\n[connections]\nmain.servers = ["nats://h"]\n')
    assert lines(base, more) == [
        "more.toml: router.name: is given in base.toml already; keep it in one of them (line 2)",
        "more.toml: connections.main.servers: is given in base.toml already; keep it in one of them (line 4)",
    ]
    more.write_text(route("c") + route("b", source="x"))
    assert problems_of(base, more) == [
        "more.toml: routes[1].name: 'b' is the name of routes[1] of base.toml already; choose another"
    ]
    more.write_text(route("c") + route("c"))
    assert problems_of(base, more) == [
        "more.toml: routes[1].name: 'c' is the name of routes[0] already; choose another"
    ]
    stream = '[[streams]]\nname = "S"\nsubjects = ["s.>"]\n'
    base.write_text(BASE + stream)
    more.write_text(stream.replace('"S"', '"T"'))
    assert problems_of(base, more) == [
        "more.toml: streams[0].subjects[0]: 's.>' overlaps with 's.>' of streams[0] of base.toml (S), and a subject "
        "can be in one stream; narrow one"
    ]
    test = '[[tests]]\nname = "t"\nmessage = { subject = "in" }\nexpect = []\n'
    base.write_text(BASE + test)
    more.write_text(test)
    assert problems_of(base, more) == [
        "more.toml: tests[0].name: 't' is the name of tests[0] of base.toml already; choose another"
    ]


def test_all_files_that_can_not_be_read_are_named(write: Write) -> None:
    base = write("base.toml", BASE)
    broken = write("broken.toml", "[router")
    assert [line.split(": ")[:2] for line in lines(base, broken, base.parent / "none.toml")] == [
        ["broken.toml", "not valid TOML"],
        ["none.toml", "there is no such file; create it or correct the path"],
    ]
    (base.parent / "empty").mkdir()
    assert lines(base, base.parent / "empty") == [
        "empty: there is no .toml file in this folder; add one, or give the path of a file"
    ]
    assert lines(base, base.parent / ".." / base.parent.name / "base.toml")[0].endswith("is given twice; leave one out")


def test_paths_are_relative_to_the_file_that_has_them(write: Write, tmp_path: Path) -> None:
    base = write("base.toml", BASE)
    more = write("more.d/login.toml", '[connections.main]\ncredentials_file = "user.creds"\n')
    creds = write("more.d/user.creds", "")
    assert load(base, more).connections["main"].credentials_file == creds


def test_variables_override_every_file(write: Write) -> None:
    base, more = write("base.toml", BASE + route("a")), write("more.toml", route("b"))
    settings = load(base, more, ROUTES__1__FROM__SUBJECT="other", ROUTER__NAME="x")
    assert [one.source.subject for one in settings.routes] == ["in", "other"]
    assert settings.router.name == "x"
    assert lines(base, more, ROUTES__1__FROM__SUBJECT="a..b") == [
        "more.toml: routes[0].from.subject: subject 'a..b' has an empty token: remove the dot at its start or end, or "
        "one of two in a row (set by ROUTER_TRIO_ROUTES__1__FROM__SUBJECT, route 'b')"
    ]


def test_a_missing_unit_is_reported_with_its_file(write: Write) -> None:
    base, more = write("base.toml", BASE), write("more.toml", "[router]\nshutdown_timeout = 5\n")
    assert lines(base, more) == [
        "more.toml: router.shutdown_timeout: has no unit; write '5s' for seconds or '5ms' (line 2)"
    ]


def test_problems_found_after_loading_are_located_too(write: Write) -> None:
    base, more = write("base.toml", route("a")), write("more.toml", route("b") + "[connections.main]\n")
    settings = load(base, more)
    with pytest.raises(ConfigurationError) as caught:
        settings.require_servers()
    assert str(caught.value).startswith(f"{more}: connections.main.servers: missing")
    assert settings.located(Problem("routes[1].handler", "x")) == Problem("routes[0].handler", "x", source=str(more))
    alone = load(write("alone.toml", BASE + route("a")))
    assert alone.located(Problem("routes[0].handler", "x")) == Problem("routes[0].handler", "x")


def test_a_part_of_a_configuration_has_the_form_of_the_schema() -> None:
    assert "required" not in json_schema()
