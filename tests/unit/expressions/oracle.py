"""Evaluate expressions with Google's CEL runtime (`cel-expr-python`, on cel-cpp), and convert its values to ours."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_strings

from router_trio.expressions.functions.times import parse_duration, parse_timestamp
from router_trio.expressions.language.types import Type
from router_trio.expressions.values import Duration, Timestamp, TypeValue, Uint, key_of

_KINDS = cel.Type
_NAMES = {
    "int": _KINDS.INT,
    "uint": _KINDS.UINT,
    "double": _KINDS.DOUBLE,
    "bool": _KINDS.BOOL,
    "string": _KINDS.STRING,
    "bytes": _KINDS.BYTES,
    "dyn": _KINDS.DYN,
    "null_type": _KINDS.NULL,
    "google.protobuf.Timestamp": _KINDS.TIMESTAMP,
    "google.protobuf.Duration": _KINDS.DURATION,
}
REFUSED, FAILED = "refused", "failed"


def _kind(one: Type) -> Any:
    if one.name == "list":
        return _KINDS.List(_kind(one.parameters[0]))
    if one.name == "map":
        return _KINDS.Map(*map(_kind, one.parameters))
    return _NAMES[one.name]


class Oracle:
    """A CEL environment with variables."""

    def __init__(self, variables: Mapping[str, Type]) -> None:
        declared = {name: _kind(one) for name, one in variables.items()}
        self._environment = cel.NewEnv(variables=declared, extensions=[ext_strings.ExtStrings()])

    def compiled(self, text: str) -> Any:
        """Return the compiled expression, or None if it is refused."""
        try:
            return self._environment.compile(text)
        except RuntimeError:
            return None

    def activation(self, values: Mapping[str, Any]) -> Any:
        """Return an activation with these values."""
        return self._environment.Activation({name: _given(value) for name, value in values.items()})


def outcome(expression: Any, activation: Any) -> tuple[str, Any]:
    """Return `("", value)`, or FAILED with the error."""
    try:
        result = expression.eval(activation)
    except RuntimeError as error:
        return FAILED, str(error)
    if result.type() == _KINDS.ERROR:
        return FAILED, result.value()
    return "", _ours(result)


def _given(value: Any) -> Any:
    if isinstance(value, Timestamp):
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value.ns // 1000)
    if isinstance(value, Duration):
        return timedelta(microseconds=value.ns // 1000)
    return int(value) if isinstance(value, Uint) else value


def _ours(result: Any) -> Any:
    kind, value = result.type(), result.value()
    if value is None:
        # The binding releases a reference to None that it does not own: without this a long run crashes.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(None))
    if kind == _KINDS.UINT:
        return Uint(value)
    if kind == _KINDS.TIMESTAMP:
        year, _, rest = str(result).partition("-")
        return parse_timestamp(f"{year:0>4}-{rest}")
    if kind == _KINDS.DURATION:
        return parse_duration(str(result))
    if kind == _KINDS.TYPE:
        return TypeValue(str(result))
    if isinstance(value, list):
        return [_ours(one) for one in value]
    if isinstance(value, dict):
        return {key_of(key): _ours(one) for key, one in value.items()}
    return bytes(value) if isinstance(value, bytearray) else value
