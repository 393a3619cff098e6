"""The conformance files of the CEL specification: finding and reading them, and what is left out of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router_trio.expressions.language.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    NULL,
    STRING,
    TIMESTAMP,
    UINT,
    Type,
    list_of,
    map_of,
    type_of,
)
from router_trio.expressions.values import Duration, Timestamp, TypeValue, Uint, key_of
from tests.support.go_modules import module_directory
from tests.unit.expressions.textproto import Fields, read

MODULE = "cel.dev/expr@v0.26.0"

FILES = (
    "basic", "comparisons", "conversions", "fields", "fp_math", "integer_math", "lists", "logic", "macros",
    "namespace", "parse", "plumbing", "string", "string_ext", "timestamps", "type_deduction",
)  # fmt: skip
"""The files that are run."""

MESSAGES = "protobuf messages, which a router does not have"
FILES_LEFT_OUT = {
    "bindings_ext": "cel.bind, an extension",
    "block_ext": "cel.block, which optimizers write",
    "dynamic": MESSAGES,
    "encoders_ext": "base64, an extension",
    "enums": MESSAGES,
    "lists_ext": "functions on lists, an extension",
    "macros2": "macros of two variables, an extension",
    "math_ext": "the math functions, an extension",
    "network_ext": "IP addresses, an extension",
    "optionals": "optional values, an extension",
    "proto2": MESSAGES,
    "proto2_ext": MESSAGES,
    "proto3": MESSAGES,
    "sets_ext": "sets, an extension",
    "unknowns": "unknown values, and it has no tests",
    "wrappers": MESSAGES,
}
SECTIONS_LEFT_OUT = {
    "string_ext/format": "format(), which is not among our functions",
    "string_ext/format_errors": "format(), which is not among our functions",
    "string_ext/quote": "strings.quote(), which is not among our functions",
    "string_ext/reverse": "reverse(), which is not among our functions",
}
UNCHECKED = "unchecked"
CASES_LEFT_OUT = {
    MESSAGES: "the expression creates a message or reads one from a variable; creating one is refused",
    UNCHECKED: "the case switches the type checker off, and ours refuses it",
    "container": "the case is parsed within a namespace; a router has none",
    "functions": "the case declares functions of its own",
    "optional": "optional values, an extension",
}

_PRIMITIVES = {"BOOL": BOOL, "INT64": INT, "UINT64": UINT, "DOUBLE": DOUBLE, "STRING": STRING, "BYTES": BYTES}
_WELL_KNOWN = {"TIMESTAMP": TIMESTAMP, "DURATION": DURATION, "ANY": DYN}
_TIMES: Mapping[str, type[Timestamp] | type[Duration]] = {
    "[type.googleapis.com/google.protobuf.Timestamp]": Timestamp,
    "[type.googleapis.com/google.protobuf.Duration]": Duration,
}


class LeftOut(Exception):
    """The case is left out. The argument is a key of CASES_LEFT_OUT."""


@dataclass
class Case:
    """A test case: an expression with its variables, and the expected value, error or type."""

    name: str
    expression: str
    variables: dict[str, Type] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    wanted: Any = True
    fails: bool = False
    type: Type | None = None
    only_checked: bool = False
    checked: bool = True


def directory() -> Path | None:
    """Return the directory of the files; None without Go or the module. May block for 60 s to download it."""
    module = module_directory(MODULE)
    return None if module is None else module / "tests" / "simple" / "testdata"


def cases(file: Path) -> Iterator[tuple[str, Fields]]:
    """Yield the name (file, section and test) and the fields of each case of a file."""
    for section in read(file.read_text(encoding="utf-8")).get("section", []):
        for test in section.get("test", []):
            yield f"{file.stem}/{section['name'][0].decode()}/{test['name'][0].decode()}", test


def case_of(name: str, test: Fields) -> Case:
    """Return the case of these fields. Raises LeftOut."""
    if "container" in test:
        raise LeftOut("container")
    case = Case(name, test["expr"][0].decode(), checked="disable_check" not in test)
    if "optional." in case.expression:
        raise LeftOut("optional")
    for declared in test.get("type_env", []):
        if "ident" not in declared:
            raise LeftOut("functions")
        case.variables[declared["name"][0].decode()] = _type(declared["ident"][0]["type"][0])
    for bound in test.get("bindings", []):
        variable = bound["key"][0].decode()
        case.values[variable] = _value(bound["value"][0]["value"][0])
        case.variables.setdefault(variable, DYN)
    if "typed_result" in test:
        (result,) = test["typed_result"]
        case.type = _type(result["deduced_type"][0])
        case.only_checked = "result" not in result
        case.wanted = None if case.only_checked else _value(result["result"][0])
    elif "value" in test:
        case.wanted = _value(test["value"][0])
    else:
        case.fails = "eval_error" in test
    return case


def _type(message: Fields) -> Type:
    ((kind, (value, *_)),) = message.items()
    match kind:
        case "primitive":
            return _PRIMITIVES[value]
        case "well_known":
            return _WELL_KNOWN[value]
        case "null":
            return NULL
        case "dyn":
            return DYN
        case "list_type":
            return list_of(_type(value["elem_type"][0]))
        case "map_type":
            return map_of(_type(value["key_type"][0]), _type(value["value_type"][0]))
        case "type":
            return type_of(_type(value) if value else DYN)
    raise LeftOut(MESSAGES)


def _value(message: Fields) -> Any:
    ((kind, (value, *_)),) = message.items()
    match kind:
        case "null_value":
            return None
        case "bool_value":
            return value == "true"
        case "int64_value":
            return int(value, 0)
        case "uint64_value":
            return Uint(int(value, 0))
        case "double_value":
            return float(value)
        case "string_value":
            return value.decode()
        case "bytes_value":
            return value
        case "type_value":
            return TypeValue(value.decode())
        case "list_value":
            return [_value(one) for one in value.get("values", [])]
        case "map_value":
            entries = value.get("entries", [])
            return {key_of(_value(one["key"][0])): _value(one["value"][0]) for one in entries}
        case "object_value":
            for name, made in _TIMES.items():
                if name in value:
                    (time,) = value[name]
                    seconds, nanos = (int(time.get(unit, ["0"])[0]) for unit in ("seconds", "nanos"))
                    return made(seconds * 10**9 + nanos)
    raise LeftOut(MESSAGES)
