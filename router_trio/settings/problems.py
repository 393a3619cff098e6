"""Translate the errors of pydantic into the words of the author of a configuration.

pydantic reports by its own locations and wording. Here its errors become `Problem`s: the path of the key as written in
the file, what is wrong, and the nearest valid spelling. Values are never copied from pydantic's errors, since they may
be secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from router_trio.errors import Problem
from router_trio.errors.quotes import excerpt

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_WORDING = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a table of keys and values",
    "model_type": "must be a table of keys and values",
    "string_type": "must be text in quotes",
    "list_type": "must be a list in brackets",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "path_type": "must be the path of a file, in quotes",
    "missing": "missing, and has no default",
    "string_too_short": "must not be empty",
}

_QUOTED = re.compile("'([^']+)'")

_REMOVED = {
    "ack": "no longer a key; remove it: every message is acked by itself",
    "fast_ingest": "no longer a key; remove it: every message gets a PubAck of its own",
}
"""Keys of earlier versions, each with its replacement. They are refused with that advice in any table."""

_UNKNOWN_IN = {
    "HeaderSettings": "a header is set below set, and its value is an expression: write set = {{ {key} = \"'...'\" }}",
}
"""Advice for unknown keys of some sections, where a list of the known keys would not help."""

_TEXT_OF = {
    "SourceSettings": "subject",
    "DestinationSettings": "subject",
    "DeadLetterSettings": "subject",
    "ExampleMessage": "subject",
    "ExpectedMessage": "subject",
    "LimitSettings": "rate",
}
"""The key that is meant if a section is given as a text."""

_OTHER_WORDS = {
    "ram": "memory",
    "mem": "memory",
    "in_memory": "memory",
    "disk": "file",
    "reject": "new",
    "refuse": "reject",
    "drop": "drop_oldest",
    "wait": "block",
    "queue": "workqueue",
    "round_robin": "weighted",
    "random": "weighted",
    "failover": "fallback",
    "hash": "sticky",
    "fanout": "all",
    "broadcast": "all",
    "first": "first_match",
    "fatal": "error",
    "critical": "error",
    "trace": "debug",
    "text": "console",
    "plain": "console",
    "never": "keep_trying",
    "forever": "keep_trying",
    "exit": "stop",
}
"""Values of other programs, with their names here. Applied only to keys that accept the name here."""


@lru_cache(maxsize=128)
def keys_of(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Return the fields of a model under the keys that a file uses: `from`, not `source`."""
    return {
        field.validation_alias if isinstance(field.validation_alias, str) else name: field
        for name, field in model.model_fields.items()
    }


def present(annotation: Any) -> Any:
    """Return the type of a field without None: the section of `LimitSettings | None`."""
    given = [one for one in get_args(annotation) if one is not NoneType]
    return given[0] if get_origin(annotation) in (Union, UnionType) and len(given) == 1 else annotation


def element_of(annotation: Any) -> Any:
    """Return the element type of a list or a dict field; None for other fields."""
    return get_args(annotation)[-1] if get_origin(annotation) in (list, dict) else None


def key_path(location: Iterable[str | int]) -> str:
    """Return a location as a key path: `("routes", 0, "to")` gives `routes[0].to`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


MOST_NAMED = 10
"""Number of names that a message lists, if none of them is similar to a name that is unknown."""


def suggestion(word: str, known: Iterable[str], most: int = MOST_NAMED) -> str:
    """Return `did you mean 'x'?` for the nearest known word, else a list of the first `most` known words."""
    words = list(dict.fromkeys(known))
    near = nearest(word, words)
    if near is not None:
        return f"did you mean {excerpt(near)!r}?"
    listed = ", ".join(repr(excerpt(one)) for one in words[:most])
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return f"there is: {listed}{more}" if words else "there is none"


def no_route(name: str, known: Iterable[str]) -> str:
    """Return what to answer where a route is given by a name that none has. `known` are the names of the routes."""
    return f"there is no route {excerpt(name)!r}; {suggestion(name, known)}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most similar to this one, ignoring case; None if none is similar."""
    import difflib  # here, because most configurations have no misspelled word

    words = {w.lower(): w for w in known}
    near = difflib.get_close_matches(word.lower(), words, n=1)
    return words[near[0]] if near else None


def problems_from(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Translate every error that pydantic found while validating `model`."""
    details = error.errors(include_url=False)
    return [Problem(key_path(detail["loc"]), _explain(detail, model)) for detail in details]


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        *above, key = detail["loc"]
        return unknown_key(str(key), above, model)
    if kind in _TABLES and (text := _in_brackets(detail, model)) is not None:
        return text
    if kind == "literal_error":
        return f"must be {context['expected']}{_nearest_value(detail['input'], context['expected'])}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_short":
        return f"must have at least {context['min_length']} entry"
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"must be at least {context['ge']}" if "ge" in context else f"must be at most {context['le']}"
    return _WORDING.get(kind) or detail["msg"].replace("Input should be", "must be")


def unknown_key(key: str, at: Sequence[str | int], model: type[BaseModel], known: Iterable[str] = ()) -> str:
    """Return what to write in place of an unknown key of the section that stands at this location.

    `known` are the keys that are suggested, by default those of the section.
    """
    section = _model_at(at, model)
    if key in _REMOVED:
        return _REMOVED[key]
    cure = _UNKNOWN_IN.get(section.__name__, "").format(key=excerpt(key))
    cure = cure or _elsewhere(key, at, model) or _suggested_key(key, known or keys_of(section))
    return f"unknown key; {cure}"


def _suggested_key(key: str, known: Iterable[str]) -> str:
    keys = list(known)
    return suggestion(key, keys, most=len(keys))


def _elsewhere(key: str, at: Sequence[str | int], model: type[BaseModel]) -> str | None:
    """Return the table that a misplaced key belongs to: of several, the nearest to where it stands; else None."""
    here = [part for part in at if isinstance(part, str)]
    nearness = {table: _shared(table, here) for table, keys in _tables(model, ()) if key in keys}
    nearest_tables = [table for table, shared in nearness.items() if shared == max(nearness.values())]
    near = [_header(table) if table else f"the top level, as {_header((key,))}" for table in nearest_tables]
    return f"it belongs to {' or '.join(near)}" if 1 <= len(near) <= 2 else None


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the number of leading parts that two paths have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _tables(model: type[BaseModel], at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, FieldInfo]]]:
    """Yield every table below a section, by its path, with its keys."""
    keys = keys_of(model)
    yield at, keys
    for key, field in keys.items():
        below = element_of(present(field.annotation)) or present(field.annotation)
        if isinstance(below, type) and hasattr(below, "model_fields"):
            yield from _tables(below, (*at, key))


def keys_of_lists(model: type[BaseModel]) -> set[str]:
    """Return the keys of lists whose items are not tables, in all tables of a configuration."""
    return {
        key
        for _, keys in _tables(model, ())
        for key, field in keys.items()
        if get_origin(field.annotation) is list and not hasattr(element_of(field.annotation), "model_fields")
    }


def _header(table: Sequence[str]) -> str:
    """Return a table as written in a file: `[routes.from]`, or `[connections.NAME]` for a named table."""
    path = ".".join("connections.NAME" if part == "connections" else part for part in table)
    is_list = table[-1] in ("routes", "to", "streams", "positions", "tests", "expect")
    return f"[[{path}]]" if is_list else f"[{path}]"


def _nearest_value(value: object, expected: str) -> str:
    if not isinstance(value, str):
        return ""
    known = _QUOTED.findall(expected)
    other = _OTHER_WORDS.get(value.lower().replace("-", "_"))
    near = other if other in known else nearest(value, known)
    return "" if near is None else f"; did you mean {near!r}?"


_TABLES = ("list_type", "dict_type", "model_type")


def _in_brackets(detail: ErrorDetails, model: type[BaseModel]) -> str | None:
    """Return the cure for a list of tables in place of a table, the reverse, or a text in place of either.

    The cure names the type of the value, never the value itself.
    """
    location, value = detail["loc"], detail["input"]
    header = ".".join(str(part) for part in location if isinstance(part, str))
    if detail["type"] == "list_type":
        if isinstance(value, dict):
            return f"must be a list of tables: write [[{header}]], with two brackets, in place of [{header}]"
        if not isinstance(value, str):
            return None
        return _text_in_place_of_table(location, value, model) or (
            f"must be a list in brackets: write {location[-1]} = [...]"
        )
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return f"must be one table: write [{header}], with one bracket, in place of [[{header}]]"
    if isinstance(value, str) and (text := _text_in_place_of_table(location, value, model)) is not None:
        return text
    *above, key = location
    if len(above) == 1 and key in keys_of(_model_at(location, model)):
        return f"must be a table; each of the {above[0]} has a name: write [{above[0]}.main] above {key}"
    return None


def _text_in_place_of_table(location: Sequence[str | int], value: str, model: type[BaseModel]) -> str | None:
    """Return the cure for a text in place of a table or a list of tables: the key of the table that is meant."""
    section: Any = _model_at(location, model)
    several = isinstance(location[-1], int) or element_of(section) is not None
    section = element_of(section) or section
    key = _TEXT_OF.get(getattr(section, "__name__", ""))
    if key is None:
        return None
    wildcard = ", with {{wildcard(1)}} in place of the first '*'"
    more = wildcard if section.__name__ == "DestinationSettings" and "*" in value else ""
    header = ".".join(part for part in location if isinstance(part, str))
    if several:
        return f'must be a list of tables: write [[{header}]], and {key} = "..." below it{more}'
    return f'must be a table: write {location[-1]} = {{ {key} = "..." }}{more}'


def _model_at(location: Iterable[str | int], model: type[BaseModel]) -> type[BaseModel]:
    """Follow a location down from a model, through lists and dicts, to the model at its end."""
    here: Any = model
    for part in location:
        here = element_of(here) or present(keys_of(here)[str(part)].annotation)
    found: type[BaseModel] = here
    return found
