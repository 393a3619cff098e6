"""Apply environment variables to a configuration.

`ROUTER_TRIO_CONNECTIONS__MAIN__FAIL_OPEN=true` sets `fail_open` of `[connections.main]`: the prefix, then the keys,
separated by `__`, in any case. A connection keeps its name in the file; for a `-` in it the variable may have `_`.
Entries of lists are named by number (`ROUTES__0__FROM__SUBJECT`). Complete lists and tables are JSON. A variable that
sets nothing is refused, since it is probably misspelled. A variable without `__` is ignored, unless it is the name of a
section (`ROUTER_TRIO_ROUTES`): Kubernetes sets `ROUTER_TRIO_PORT` and others for a service named router-trio.

pydantic-settings splits names and parses JSON; this module finds the place in the document. It is imported only if
there are variables with our prefix, because pydantic-settings takes longer to import than all the rest of loading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, create_model
from pydantic_settings import BaseSettings, EnvSettingsSource

from router_trio.errors import Problem
from router_trio.settings.problems import element_of, key_path, keys_of, nearest, present
from router_trio.settings.reading.document import PREFIX, Document, Location, is_model

_DELIMITER = "__"
# The text may be a secret, so it is not repeated.
_NO_JSON = """is not JSON; write a list as ["a", "b"] and a table as {"key": "value"}"""


class _Refused(Exception):
    """A variable that can't be used, and why."""


def overlay(document: Document, environ: Mapping[str, str], root: type[BaseModel]) -> None:
    """Apply every variable with our prefix to the document, shorter names first; record those that set nothing."""
    source = _source(root)
    in_file = _connection_names(document)
    known = list(_spellings(document.data, root, ()))
    variables = [(name, text) for name, text in environ.items() if name.upper().startswith(PREFIX)]
    for variable, text in sorted(variables, key=lambda item: (item[0].count(_DELIMITER), item[0])):
        if not _is_ours(variable, root):
            document.ignored.extend(_near_miss(variable, known))
            continue
        try:
            tree = _tree(source, variable, text)
            locations = list(_lay_over(document.data, tree, root, ()))
        except _Refused as refused:
            document.problems.append(Problem(variable, str(refused) or _sets_nothing(variable, known)))
        else:
            document.variables.update((key_path(location), variable) for location in locations)
    _check_new_connections(document, in_file, known)


def _is_ours(variable: str, root: type[BaseModel]) -> bool:
    word = variable[len(PREFIX) :]
    return _DELIMITER in word or word.lower() in keys_of(root)


def _near_miss(variable: str, known: list[str]) -> Iterator[Problem]:
    """Yield a problem for a variable that would set a key with `__` in place of `_`."""
    meant = next((one for one in known if one.replace(_DELIMITER, "_") == variable.upper()), None)
    if meant is not None:
        yield Problem(variable, f"is ignored, since it has no '__'; write {meant} to set that key")


def _sets_nothing(variable: str, known: list[str]) -> str:
    near = _nearest(variable, known)
    if near == variable.upper():
        return "has the wrong form; `router-trio schema` shows the form of each key"
    return f"sets nothing; did you mean {near}?" if near else "sets nothing; `router-trio schema` shows all keys"


def _nearest(variable: str, known: list[str]) -> str | None:
    # All names share the prefix, which would make them all similar.
    near = nearest(variable[len(PREFIX) :], [name[len(PREFIX) :] for name in known])
    return None if near is None else PREFIX + near


def _source(root: type[BaseModel]) -> EnvSettingsSource:
    fields: dict[str, Any] = {key: (info.annotation, None) for key, info in keys_of(root).items()}
    model = create_model("Environment", __base__=BaseSettings, **fields)
    return EnvSettingsSource(model, case_sensitive=False, env_prefix=PREFIX, env_nested_delimiter=_DELIMITER)


def _tree(source: EnvSettingsSource, variable: str, text: str) -> dict[str, Any]:
    """Return the nested tables that one variable stands for."""
    # One at a time: otherwise an error couldn't name its variable.
    source.env_vars = {variable.lower(): text}
    try:
        tree = source()
    except (ValueError, RecursionError):
        raise _Refused(_NO_JSON) from None
    if not tree:
        raise _Refused
    return tree


def _lay_over(table: dict[str, Any], tree: dict[str, Any], model: type[BaseModel], at: Location) -> Iterator[Location]:
    """Merge a tree into the table of a section; yield the locations that it set."""
    keys = keys_of(model)
    for word, value in tree.items():
        key = word.lower()
        # Unknown keys are set as well: validation reports them.
        annotation = keys[key].annotation if key in keys else Any
        yield from _put(table, key, value, annotation, (*at, key))


def _put(holder: Any, key: str | int, value: Any, annotation: Any, at: Location) -> Iterator[Location]:
    """Set one entry of a table or list; tables are merged, all else is replaced."""
    annotation = present(annotation)
    kind, element = get_origin(annotation), element_of(annotation)
    maybe_list = any(get_origin(one) is list for one in get_args(annotation))  # `str | list[str]`
    if isinstance(value, str) and (is_model(annotation) or kind in (list, dict) or (maybe_list and value[:1] == "[")):
        # pydantic-settings doesn't look inside lists.
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _Refused(_NO_JSON) from None
    if not isinstance(value, dict) or annotation is Any:
        holder[key] = value
        yield at
        return
    if kind is not list and not (is_model(annotation) or kind is dict):
        raise _Refused
    if isinstance(holder, dict):
        holder.setdefault(key, [] if kind is list else {})
    below = holder[key]
    if is_model(annotation) and not value:
        yield at
    elif is_model(annotation) and isinstance(below, dict):
        yield from _lay_over(below, value, annotation, at)
    elif kind is dict and isinstance(below, dict):
        for word, item in value.items():
            name = _name(below, word)
            yield from _put(below, name, item, element, (*at, name))
    elif kind is list and isinstance(below, list):
        for word, item in value.items():
            number = _number(below, word, at)
            yield from _put(below, number, item, element, (*at, number))
    # Otherwise the file has a value of another type here, which validation refuses.


def _number(entries: list[Any], word: str, at: Location) -> int:
    if not (word.isascii() and word.isdigit()):
        raise _Refused
    if int(word) >= len(entries):
        raise _Refused(f"there is no {key_path((*at, int(word)))} in the file; entries are counted from 0")
    return int(word)


def _name(table: dict[str, Any], word: str) -> str:
    """Return the name in a table for a word of a variable, ignoring case and `-` against `_`; a new word itself."""
    if word in table:
        return word
    same = [name for name in table if name.lower().replace("-", "_") == word.lower().replace("-", "_")]
    if len(same) > 1:
        raise _Refused(f"could mean each of {', '.join(map(repr, same))}; set it in the file")
    return same[0] if same else word


def _connection_names(document: Document) -> set[str]:
    connections = document.data.get("connections")
    return set(connections) if isinstance(connections, dict) else set()


def _check_new_connections(document: Document, in_file: set[str], known: list[str]) -> None:
    """Ignore, with a warning, a connection that only the environment names, unless its servers are set as well.

    One set of variables may serve several routers with different connections in their files.
    """
    for name in _connection_names(document) - in_file:
        given = document.data["connections"][name]
        if not isinstance(given, dict) or "servers" in given:
            continue  # validation refuses a value that is not a table
        del document.data["connections"][name]
        path = f"connections.{name}"
        keys = [key for key in document.variables if key == path or key.startswith(f"{path}.")]
        for variable in dict.fromkeys([document.variables.pop(key) for key in keys]):
            near = _nearest(variable, known)
            cure = f"did you mean {near}?" if near else "add it there, or set its servers too"
            text = f"is ignored, since the file has no connection {name!r}; {cure}"
            document.ignored.append(Problem(variable, text))


def _spellings(value: Any, annotation: Any, at: tuple[str, ...]) -> Iterator[str]:
    """Yield every variable that could set something in this document."""
    annotation = present(annotation)
    element = element_of(annotation)
    if is_model(annotation):
        table = value if isinstance(value, dict) else {}
        for key, info in keys_of(annotation).items():
            yield from _spellings(table.get(key), info.annotation, (*at, key))
    elif is_model(element) and isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _spellings(item, element, (*at, str(name)))
    else:
        yield PREFIX + _DELIMITER.join(at).upper()
