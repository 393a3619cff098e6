"""The line of a key in a file: found for every key of every valid document."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from router_trio.settings.reading.places import Places
from tests.docs.pages import DOCS, page

ODD = '''\
# a comment with [brackets] = "x"
title = "a # b" # a comment
"quoted key" = 1
'literal' = """
[not.a.table]
k = 1 \\""" still
"""
dotted . key.deep = { a = 1, "b c" = [ { x = 1 }, { x = "}" } ] } # }
numbers = [
    1, # one ]
    [2, 3],

    """four]
""",
]
[table]
when = 1979-05-27 07:32:00
[ table . "inner one" ]
z = \'\'\'
[[x]]\'\'\'
[[routes]]
name = "first"
[[routes.to]]
subject = "a"
[[routes.to]]
subject = "b"
[[routes]]
name = "second"
[routes.from]
subject = "c"
[[routes.to]]
subject = "d"
to.more = 1
'''


def paths(value: Any, at: str = "") -> Iterator[str]:
    """Yield the path of each key and entry of a document."""
    if isinstance(value, dict):
        for key, one in value.items():
            path = f"{at}.{key}" if at else key
            yield path
            yield from paths(one, path)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield f"{at}[{index}]"
            yield from paths(one, f"{at}[{index}]")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("title", 2),
        ("quoted key", 3),
        ("literal", 4),
        ("dotted.key.deep", 8),
        ("dotted.key.deep.b c[1].x", 8),
        ("numbers", 9),
        ("numbers[0]", 10),
        ("numbers[1][1]", 11),
        ("numbers[2]", 13),
        ("table.when", 17),
        ("table.inner one.z", 19),
        ("routes", 21),
        ("routes[0].name", 22),
        ("routes[0].to[1]", 25),
        ("routes[0].to[1].subject", 26),
        ("routes[1].from.subject", 30),
        ("routes[1].to[0].to.more", 33),
        ("routes[1].to[0].absent.key", 31),
    ],
)
def test_a_key_is_found_on_its_line(path: str, line: int) -> None:
    assert Places(ODD, {}).place_of(path) == f"line {line}"


def test_a_key_that_is_not_in_the_file_has_no_place() -> None:
    assert Places(ODD, {}).place_of("connections.main") == ""


def test_every_key_of_every_page_is_found() -> None:
    texts = [ODD, *(block.text for one in DOCS.rglob("*.md") for block in page(one).blocks if block.language == "toml")]
    assert len(texts) > 20
    for text in texts:
        data = tomllib.loads(text)
        lines = Places(text, data)._lines
        assert set(paths(data)) <= lines.keys(), text


def test_a_problem_names_the_line_and_the_route(tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text(
        '\ufeff[connections.main]\nservers = ["nats://h"]\n\n[[routes]]\nname = "orders"\n'
        '[routes.from]\nsubjct = "in"\n'
        '[[routes.to]]\nsubject = "a..b"\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(file, environ={})
    assert str(caught.value).splitlines() == [
        f"{file}: routes[0].from: names no source; give a subject, or a stream and a durable, or a bucket and "
        "a durable (line 6, route 'orders')",
        f"{file}: routes[0].from.subjct: unknown key; did you mean 'subject'? (line 7, route 'orders')",
    ]


def test_a_problem_of_a_variable_names_the_route_too(tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text(
        '[connections.main]\nservers = ["nats://h"]\n[[routes]]\nname = "orders"\nfrom = { subject = "in" }\n'
        'to = [ { subject = "out" } ]\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(file, environ={"ROUTER_TRIO_ROUTES__0__FROM__SUBJECT": "a..b"})
    assert "(set by ROUTER_TRIO_ROUTES__0__FROM__SUBJECT, route 'orders')" in str(caught.value)


def test_problems_are_sorted_by_line(tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text(
        '[[routes]]\nname = "a"\nfrom = { subject = "a..b" }\nto = [ { subject = "out", nonsense = 1 } ]\n'
        '[connections.main]\nservers = ["nats://h"]\nfail_open = "yes"\n[router]\nname = ""\nworkers = 0\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(file, environ={})
    found = [problem.line for problem in caught.value.problems]
    assert len(set(found)) > 3
    assert found == sorted(found)


class Table(dict[str, Any]):
    """A table to which weak references can be made."""


def test_values_of_a_file_are_forgotten_and_its_lines_and_names_of_routes_are_not() -> None:
    text = '[[routes]]\nname = "a"\nfrom = { subject = "a" }\n\n[[routes]]\nname = "b"\n\n[[routes]]\nto = []\n'
    data = tomllib.loads(text)
    data["routes"][0]["from"] = Table(data["routes"][0]["from"])
    kept = ref(data["routes"][0]["from"])
    places = Places(text, data)
    paths = ["routes[0].from", "routes[1].name", "routes[2].to", "routes[3]", "router"]
    before = [places.place_of(path) for path in paths]
    places.forget_values()
    del data
    assert kept() is None
    assert [places.place_of(path) for path in paths] == before
    assert before[:2] == ["line 3, route 'a'", "line 6, route 'b'"]
