"""Read files and the environment into plain data, ready for validation.

The files are TOML. Paths in a file are relative to its folder, so that a configuration can be moved together with its
files; `~` is the home folder. Of the environment only variables with our prefix are used, and the code that reads them
is imported only if there are any.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from router_trio.errors import ConfigurationError, Problem
from router_trio.settings.problems import element_of, key_path, keys_of, keys_of_lists, present
from router_trio.settings.reading.document import PREFIX, Document, Location, is_model
from router_trio.settings.reading.files import Files, merge
from router_trio.settings.reading.places import Places
from router_trio.settings.schema_file import SchemaFile
from router_trio.settings.units import DurationForm

MAX_DEPTH = 64
"""Levels of tables and lists in a file."""

INTEGER_BITS = 63
"""Bits of an integer of TOML, without its sign."""

_TOO_DEEP = f"tables and lists are nested more than {MAX_DEPTH} levels deep; no key needs that many"
_TOO_LARGE = "larger than an integer of 64 bits; correct it"
_DIGITS = re.compile(r"[0-9][0-9_]{639,}")
_UNFORESEEN: Mapping[type[Exception], str] = {
    MemoryError: "it needs more memory than there is",
    RecursionError: _TOO_DEEP,
}


def read_document(paths: Sequence[Path], environ: Mapping[str, str], root: type[BaseModel]) -> Document:
    """Read the files, those of folders in the order of their names, and apply the environment to them.

    Blocks while reading small files. Raises ConfigurationError if a file can't be read or is not TOML; other problems
    are in the result, to be reported together with those of validation.
    """
    if len(paths) == 1 and not _is_folder(paths[0]):
        (path,) = paths
        return parse_document(_read(path), str(path), path.resolve().parent, environ, root)
    document = Document({}, Files({}, several=True))
    refused: list[Problem] = []
    lists = _lists(root)
    folder = Path.cwd()
    for file in files_of(paths):
        name = str(file)
        try:
            text = _decoded(_read(file), name)
            data = _parsed(text, name, root)
        except ConfigurationError as error:
            refused += [replace(problem, source=name) for problem in error.problems]
            continue
        if not document.files.places:
            folder = file.resolve().parent
        document.files.places[name] = Places(text, data)
        document.problems += [replace(problem, source=name) for problem in _of_another_kind(data, root)]
        _resolve(data, root, file.resolve().parent)
        document.problems += merge(document.data, data, name, document.files, lists)
    if refused:
        raise ConfigurationError(refused + [document.files.located(problem) for problem in document.problems])
    _lay_over(document, environ, root, folder)
    return document


def parse_document(
    content: bytes, name: str, folder: Path, environ: Mapping[str, str], root: type[BaseModel]
) -> Document:
    """Return the data of a file, with the environment applied to it. Paths in it are relative to `folder`.

    `name` is the name of the file in errors. Raises ConfigurationError if it is not TOML.
    """
    text = _decoded(content, name)
    data = _parsed(text, name, root)
    document = Document(data, Files({name: Places(text, data)}))
    document.problems += _of_another_kind(data, root)
    _lay_over(document, environ, root, folder)
    return document


def _lay_over(document: Document, environ: Mapping[str, str], root: type[BaseModel], folder: Path) -> None:
    """Apply the environment to the data of the files, and make the remaining relative paths relative to `folder`."""
    if any(name.upper().startswith(PREFIX) for name in environ):
        from router_trio.settings.reading.environment import overlay

        overlay(document, environ, root)
        for variable_set in document.variables:
            document.files.entries.pop(variable_set, None)  # the variable replaced the list
    _resolve(document.data, root, folder)


def files_of(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield each file of a configuration once, in order, those of folders included. Raises ConfigurationError."""
    known: set[str] = set()
    for path in paths:
        # A path that is not a folder is a file; reading it reports a missing one.
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
        return False  # reading it reports the error


def _of_another_kind(data: dict[str, Any], root: type[BaseModel]) -> Iterator[Problem]:
    """Remove the values whose TOML type does not fit their key, and yield a problem for each."""
    for location, table, key, value, info in leaves(data, root):
        if _is_duration(info) and isinstance(value, int | float) and not isinstance(value, bool):
            text = f"has no unit; write '{value}s' for seconds or '{value}ms'"
            yield Problem(key_path((*location, key)), text)
            # Validation would take it for seconds, as it does in code, and report problems that follow from that.
            del table[key]
        elif (wrong := _other_kind(info, value)) is not None:
            yield Problem(key_path((*location, key)), wrong)
            del table[key]  # validation would read "yes" as true, as it must in variables


def _resolve(data: dict[str, Any], root: type[BaseModel], folder: Path) -> None:
    """Make the paths in the data relative to a folder."""
    for _, table, key, value, info in leaves(data, root):
        if _is_path(info) and isinstance(value, str) and value:
            table[key] = str(in_folder(folder, value))


def in_folder(folder: Path, text: str) -> Path:
    """Return the path that a file in a folder means by a text: relative to the folder, or to the home folder."""
    return folder / _at_home(text)


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
    """Yield `(location of the table, the table, key, value, field)` for each known value that is not a section."""
    if not isinstance(table, dict):
        return
    for key, (info, section, element) in _sections_of(model).items():
        if key not in table:
            continue
        value = table[key]
        if section is not None:
            yield from leaves(value, section, (*at, key))
        elif element is not None and isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for name, item in items:
                yield from leaves(item, element, (*at, key, name))
        else:
            yield at, table, key, value, info


@lru_cache(maxsize=128)
def _sections_of(
    model: type[BaseModel],
) -> Mapping[str, tuple[FieldInfo, type[BaseModel] | None, type[BaseModel] | None]]:
    """Return the fields of a section by key, with the section that each contains, or a list or table of; else None."""
    found = {}
    for key, info in keys_of(model).items():
        annotation: Any = present(info.annotation)
        element = element_of(annotation)
        found[key] = info, annotation if is_model(annotation) else None, element if is_model(element) else None
    return found


def _other_kind(info: FieldInfo, value: object) -> str | None:
    """Return the type that a value must have, if TOML has that type and the value is of another one."""
    if any(hasattr(item, "read") for item in info.metadata):
        return None  # a duration or a size, which is text in a file
    wanted, kind = present(info.annotation), type(value)
    if wanted is bool and kind in (str, int, float):
        return f"must be true or false{', without quotes' if kind is str else ''}"
    if wanted in (int, float) and kind in (str, bool):
        number = "a whole number" if wanted is int else "a number"
        return f"must be {number}{', without quotes' if kind is str else ''}"
    return None


def _is_duration(info: FieldInfo) -> bool:
    return any(isinstance(item, DurationForm) for item in info.metadata)


def _is_path(info: FieldInfo) -> bool:
    return info.annotation in (Path | None, SchemaFile | None)


def _at_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # No home folder: the file will be reported as missing, with its full path.
        return Path(text)


def _refused(message: str, name: str) -> ConfigurationError:
    return ConfigurationError([Problem("", message)], name)


def _read(path: Path) -> bytes:
    name = str(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _refused("there is no such file; create it or correct the path", name) from None
    except IsADirectoryError:
        raise _refused("this is a folder; give the path of the file in it", name) from None
    except OSError as error:
        raise _refused(f"can't be read ({error.strerror}); check the path and the permissions", name) from None
    except ValueError as error:
        raise _refused(f"can't be read ({error}); correct the path", name) from None


def _decoded(content: bytes, name: str) -> str:
    try:
        # Some editors put a byte order mark before everything else.
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise _refused(f"not UTF-8 at line {line}, column {column}; save the file as UTF-8", name) from None


def _parsed(text: str, name: str, root: type[BaseModel]) -> dict[str, Any]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        from router_trio.settings.reading.syntax import explained  # here, because most files are valid TOML

        raise _refused(f"not valid TOML: {explained(str(error), text, keys_of_lists(root))}", name) from None
    except RecursionError:
        raise _refused(_TOO_DEEP, name) from None
    except ValueError:  # of `int`, for more digits than it reads
        digits = _DIGITS.search(text)
        line = f" at line {text.count(chr(10), 0, digits.start()) + 1}" if digits else ""
        raise _refused(f"not valid TOML: a number{line} is {_TOO_LARGE}", name) from None
    _check_values(data, name)
    return data


def _check_values(data: dict[str, Any], name: str) -> None:
    """Raise ConfigurationError for values nested too deep, and for integers that are larger than those of TOML."""
    level: list[tuple[Location, object]] = [((), data)]
    for _ in range(MAX_DEPTH):
        level = [
            ((*at, key), item)
            for at, value in level
            if isinstance(value, dict | list)
            for key, item in (value.items() if isinstance(value, dict) else enumerate(value))
        ]
        for at, value in level:
            if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
                raise ConfigurationError([Problem(key_path(at), f"is {_TOO_LARGE}")], name)
        if not level:
            return
    raise _refused(_TOO_DEEP, name)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Raise ConfigurationError, which names the file, for any error in this block: none may end a running router."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        # Without its text, which may quote a secret.
        raise _refused(f"can't be used: {_UNFORESEEN.get(type(error), type(error).__name__)}", name) from error
