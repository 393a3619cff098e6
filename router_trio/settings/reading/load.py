"""From files and the environment to plain data, ready to be validated.

The file is TOML. Paths of other files in it are relative to the folder it lies in, so that a configuration can be
moved as a whole; `~` is the home folder. The environment is looked at only for variables of our prefix, and the code
that reads them is imported only when there are any.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from router_trio.errors import ConfigurationError, Problem
from router_trio.settings.problems import element_of, key_path, keys_of, present
from router_trio.settings.reading.document import PREFIX, Document, Location, is_model
from router_trio.settings.reading.places import Places, merge
from router_trio.settings.units import DurationForm


def read_document(paths: Sequence[Path], environ: Mapping[str, str], root: type[BaseModel]) -> Document:
    """Read the files, those of folders in the order of their names, and lay the environment over them.

    Blocks for the time of reading small files. Raises ConfigurationError if one can't be read or is no TOML; other
    problems are in the result, to be reported together with those of the validation.
    """
    one = len(paths) == 1 and not _is_folder(paths[0])
    files = list(paths) if one else list(_files(paths))
    document = Document({}, places=Places([] if one else [str(file) for file in files]))
    refused: list[Problem] = []
    for file in files:
        try:
            data = _read_toml(file)
        except ConfigurationError as error:
            if one:
                raise
            refused += [replace(problem, source=str(file)) for problem in error.problems]
            continue
        problems = [*_without_units(data, root)]
        _resolve(data, root, file)
        if one:
            document.data = data
        else:
            problems = [replace(problem, source=str(file)) for problem in problems]
            problems += merge(document.data, data, str(file), document.places, _lists(root))
        document.problems += problems
    if refused:
        raise ConfigurationError(refused + document.problems)
    if any(name.upper().startswith(PREFIX) for name in environ):
        from router_trio.settings.reading.environment import overlay

        overlay(document, environ, root)
        for variable_set in document.variables:
            document.places.entries.pop(variable_set, None)  # the list is another one now
    _resolve(document.data, root, files[0])
    return document


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield each file once, in order. Raises ConfigurationError."""
    known: set[str] = set()
    for path in paths:
        # What is no folder is a file, also if there is none: reading it says so.
        found = sorted(path.glob("[!.]*.toml")) if _is_folder(path) else [path]
        if not found:
            raise ConfigurationError(
                [Problem("", "there is no .toml file in this folder; add one, or give the path of a file")], str(path)
            )
        for file in found:
            name = str(file) if "\0" in str(file) else str(file.resolve())
            if name in known:
                raise ConfigurationError([Problem("", "is given twice; leave one out")], str(file))
            known.add(name)
            yield file


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False  # whoever reads it says why


def _without_units(data: dict[str, Any], root: type[BaseModel]) -> Iterator[Problem]:
    for location, table, key, value, info in leaves(data, root):
        if _is_duration(info) and isinstance(value, int | float) and not isinstance(value, bool):
            told = f"has no unit; write '{value}s' for seconds or '{value}ms'"
            yield Problem(key_path((*location, key)), told)
            # The validation would take it for seconds, as it does in code, and judge on from there.
            del table[key]


def _resolve(data: dict[str, Any], root: type[BaseModel], file: Path) -> None:
    """Make the paths in it relative to the folder of the file that has them."""
    folder = file.resolve().parent
    for _, table, key, value, info in leaves(data, root):
        if _is_path(info) and isinstance(value, str) and value:
            table[key] = str(folder / _at_home(value))


def _lists(root: type[BaseModel]) -> list[str]:
    """Return the keys of the lists of sections."""
    return [
        key
        for key, info in keys_of(root).items()
        if get_origin(info.annotation) is list and is_model(element_of(info.annotation))
    ]


def leaves(
    table: object, model: type[BaseModel], at: Location = ()
) -> Iterator[tuple[Location, dict[str, Any], str, object, FieldInfo]]:
    """Yield `(location of the table, the table, key, value, field)` for each known value that is no section."""
    if not isinstance(table, dict):
        return
    for key, info in keys_of(model).items():
        if key not in table:
            continue
        value = table[key]
        annotation: Any = present(info.annotation)
        element = element_of(annotation)
        if is_model(annotation):
            yield from leaves(value, annotation, (*at, key))
        elif is_model(element) and isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for name, item in items:
                yield from leaves(item, element, (*at, key, name))
        else:
            yield at, table, key, value, info


def _is_duration(info: FieldInfo) -> bool:
    return any(isinstance(item, DurationForm) for item in info.metadata)


def _is_path(info: FieldInfo) -> bool:
    return info.annotation == Path | None


def _at_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # No home folder: the file won't exist, and that is reported with its whole path.
        return Path(text)


def _read_toml(path: Path) -> dict[str, Any]:
    def refuse(message: str) -> ConfigurationError:
        return ConfigurationError([Problem("", message)], str(path))

    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise refuse("there is no such file; create it or correct the path") from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise refuse(f"not UTF-8 at line {line}, column {column}; save the file as UTF-8") from None
    except OSError as error:
        raise refuse(f"can't be read ({error.strerror}); check the path and the permissions") from None
    except ValueError as error:
        raise refuse(f"can't be read ({error}); correct the path") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.split("\n")
        end = f"(at line {len(lines)}, column {len(lines[-1]) + 1})"
        raise refuse(f"not valid TOML: {str(error).replace('(at end of document)', end)}") from None
