"""`schema` of a route: a file beside the configuration, read at the start and by each reload."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from router_trio.cli.run.reloading import ChangeDetector, content_of
from router_trio.errors import ConfigurationError
from router_trio.settings import Settings, json_schema
from router_trio.settings.checks.warnings import warnings
from router_trio.settings.guarantee import guarantee
from router_trio.settings.reload.difference import difference
from router_trio.settings.schema_file import SchemaFile

CONFIGURATION = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "orders"
schema = "schemas/order.json"
from.subject = "orders.*"
to = [{ subject = "out" }]
"""


def write(folder: Path, schema: str = '{"type": "object"}', name: str = "router.toml") -> Path:
    (folder / "schemas").mkdir(exist_ok=True)
    (folder / "schemas" / "order.json").write_text(schema, encoding="utf-8")
    (folder / name).write_text(CONFIGURATION, encoding="utf-8")
    return folder / name


def file_of(settings: Settings) -> SchemaFile:
    file = settings.routes[0].schema_file
    assert file is not None
    return file


def test_the_path_is_relative_to_the_folder_of_its_file(tmp_path: Path) -> None:
    file = file_of(Settings.load(write(tmp_path), environ={}))
    assert (file.path, file.content) == (str(tmp_path / "schemas" / "order.json"), b'{"type": "object"}')
    assert file.schema.miss([]) == "the body must be of type object, not an array (#/type)"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "empty.toml").write_text("", encoding="utf-8")
    assert file_of(Settings.load(tmp_path / "more", tmp_path / "router.toml", environ={})) == file


def test_a_text_has_no_folder_so_the_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write(tmp_path).read_bytes()
    with pytest.raises(ConfigurationError, match="there is no file"):
        Settings.parse(content, environ={})
    monkeypatch.chdir(tmp_path)
    assert file_of(Settings.parse(content, environ={})).name == "order.json"
    made = Settings(
        connections={"main": {}},
        routes=[{"name": "a", "from": {"subject": "a"}, "to": [{"subject": "b"}], "schema": "schemas/order.json"}],
    )
    assert file_of(made) == file_of(Settings.parse(content, environ={}))


def test_a_variable_names_another_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "other.json").write_text("true", encoding="utf-8")
    environ = {"ROUTER_TRIO_ROUTES": '[{"name": "a", "from": {"subject": "a"}, "to": [{"subject": "b"}], '
                                     '"schema": "other.json"}]'}  # fmt: skip
    assert file_of(Settings.load(path, environ=environ)).content == b"true"


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ('{"type": "objekt"}', ", at #/type: must be one of array, boolean, integer, null, number, object, string, or "
         "a list of these: did you mean 'object'?; correct it"),
        ('{"$ref": "http://example.com/a"}', ", at #/$ref: 'http://example.com/a' is not in this file, and nothing is "
         "fetched; copy that schema into $defs"),
        ("{", " is not JSON at line 1, column 2 (Expecting property name enclosed in double quotes); correct it"),
    ],
)  # fmt: skip
def test_a_fault_names_the_file_the_place_and_the_cure(tmp_path: Path, schema: str, text: str) -> None:
    path = write(tmp_path, schema)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(path, environ={})
    file = tmp_path / "schemas" / "order.json"
    assert str(caught.value) == f"{path}: routes[0].schema: {str(file)!r}{text} (line 6, route 'orders')"


@pytest.mark.parametrize("value", ["", "nowhere.json", "schemas", 5, True, ["a"]])
def test_no_file_is_refused(tmp_path: Path, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    route = {"name": "a", "from": {"subject": "a"}, "to": [{"subject": "b"}], "schema": value}
    with pytest.raises(ConfigurationError) as caught:
        Settings(connections={"main": {}}, routes=[route])
    (problem,) = caught.value.problems
    assert problem.path == "routes[0].schema"
    assert problem.message in (
        "must be the path of a file, in quotes",
        f"there is no file {value!r}; create it or correct the path",
    )


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write(tmp_path).read_bytes()
    monkeypatch.chdir(tmp_path)

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigurationError, match=r"order.json' can't be read \(Permission denied\); correct the path"):
        Settings.parse(content, environ={})


def test_without_the_libraries_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("router_trio.schemas")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jsonschema_specifications", None)
    with pytest.raises(ConfigurationError, match="pip install google-re2 jsonschema-specifications"):
        Settings.load(write(tmp_path), environ={})


def test_a_changed_content_is_a_change_of_the_route(tmp_path: Path) -> None:
    path = write(tmp_path)
    old, same = Settings.load(path, environ={}), Settings.load(path, environ={})
    assert not difference(old, same)
    new = Settings.load(write(tmp_path, '{"type": "array"}'), environ={})
    (change,) = difference(old, new).routes.changed
    (key,) = change.keys
    assert change.keeps_subscription
    assert str(key) == f'schema: "{file_of(old)}" -> "{file_of(new)}"'
    assert str(file_of(old)).startswith("order.json (sha256 ")
    assert old.content_hash == same.content_hash != new.content_hash


def test_another_place_of_the_same_file_is_no_change(tmp_path: Path) -> None:
    old = Settings.load(write(tmp_path), environ={})
    (tmp_path / "elsewhere").mkdir()
    new = Settings.load(write(tmp_path / "elsewhere"), environ={})
    assert not difference(old, new)
    assert old.content_hash == new.content_hash


def test_workers_get_the_content_with_their_settings(tmp_path: Path) -> None:
    settings = Settings.load(write(tmp_path), environ={})
    (tmp_path / "schemas" / "order.json").unlink()
    copy = pickle.loads(pickle.dumps(settings))
    assert file_of(copy) == file_of(settings)
    assert file_of(copy).schema.miss({}) is None


def test_a_changed_schema_file_is_found_by_watching_files(tmp_path: Path) -> None:
    path = write(tmp_path)
    detector = ChangeDetector(content_of([path]))
    write(tmp_path, '{"type": "array"}')
    assert [detector.has_changed(content_of([path])) for _ in range(3)] == [False, True, False]
    (tmp_path / "schemas" / "order.json").unlink()
    assert content_of([path]) is None
    path.write_text("[[routes", encoding="utf-8")
    assert content_of([path]) == ((str(path), b"[[routes"),)


def test_the_guarantee_says_what_becomes_of_a_body_that_does_not_fit(tmp_path: Path) -> None:
    route = Settings.load(write(tmp_path), environ={}).routes[0]
    assert guarantee(route) == "at most once; given up at once if the body does not fit order.json"


def test_the_schema_of_the_configuration_has_the_key() -> None:
    route = json_schema()["$defs"]["RouteSettings"]["properties"]
    assert route["schema"]["type"] == "string"
    assert "schema_file" not in route


def test_check_warns_of_a_misspelt_keyword(tmp_path: Path) -> None:
    settings = Settings.load(write(tmp_path, '{"requird": ["id"]}'), environ={})
    (warning,) = warnings(settings.connections, settings.routes)
    file = str(tmp_path / "schemas" / "order.json")
    text = "at #: 'requird' is no keyword, so it has no effect; did you mean 'required'?"
    assert (warning.path, warning.message) == ("routes[0].schema", f"{file!r}, {text}")
