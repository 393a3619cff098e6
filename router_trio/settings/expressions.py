"""The expressions of a configuration: their variables, and the types that each may evaluate to."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from router_trio.errors import ExpressionError

if TYPE_CHECKING:
    # For type checkers only: the compiler is imported when a configuration has an expression.
    from router_trio.expressions.expression import Expression
    from router_trio.expressions.language.types import Type

MAX_COMPILED = 4_096
"""Number of compiled expressions in the cache: many routes of one file have the same expression."""

WHEN, KEY, PAYLOAD, HEADER, PER, DELAY = "when", "key", "payload", "header", "per", "delay"
"""The purpose of an expression."""

_TIMES = ("google.protobuf.Duration", "google.protobuf.Timestamp")

_IDENTIFIER = re.compile(r"\w+")
_PLAIN_TEXT = re.compile(r"[\w ./:-]{1,64}")


@lru_cache(MAX_COMPILED)
def compile_for(text: str, purpose: str, *, from_stream: bool) -> Expression:
    """Return the compiled expression of a route, for one of the purposes above.

    `from_stream`: messages have the variables of a stream. Raises ExpressionError, also if the type of the value does
    not suit the purpose.
    """
    from router_trio.expressions.expression import compile_expression
    from router_trio.expressions.language.types import BOOL
    from router_trio.expressions.message import MESSAGE_VARIABLES, STREAM_VARIABLES

    variables = STREAM_VARIABLES if from_stream else MESSAGE_VARIABLES
    try:
        expression = compile_expression(text, variables, result=BOOL if purpose == WHEN else None, name=purpose)
    except ExpressionError as error:
        if purpose == HEADER and _PLAIN_TEXT.fullmatch(text):
            message = f"{error.message}; for that very text write quotes inside of the quotes: '\"{text}\"'"
            raise ExpressionError(
                message, name=purpose, line=error.line, column=error.column, picture=error.picture
            ) from None
        name = _IDENTIFIER.match(text.split("\n")[error.line - 1], error.column - 1)
        if from_stream or name is None or name[0] not in STREAM_VARIABLES.keys() - MESSAGE_VARIABLES.keys():
            raise
        if not error.message.startswith("there is no variable"):
            raise
        message = f"there is no variable {name[0]!r}: only messages from a stream have it, and this source is a subject"
        raise ExpressionError(
            message, name=purpose, line=error.line, column=error.column, picture=error.picture
        ) from None
    refusal = _refusal(expression, purpose)
    if refusal is not None:
        picture = "\n".join(f"  {line}" for line in text.splitlines())
        raise ExpressionError(refusal, name=purpose, line=1, column=1, picture=picture)
    return expression


def _refusal(expression: Expression, purpose: str) -> str | None:
    """Return why the type of the value does not suit the purpose, or None."""
    from router_trio.expressions.language.types import spelled

    found = f"this is of type {spelled(expression.type)}"
    if purpose in (KEY, PER):
        if expression.type.name in ("list", "map", "type", "null_type"):
            return f"{found}, which can't be a key; take a string, a number or a bool"
        if not expression.reads:
            return "this is the same for every message; take something of the message, such as body.customer.id"
        if "deliveries" in expression.reads:
            return "a message would have another key each time it is delivered; leave out 'deliveries'"
    elif purpose == HEADER:
        if expression.type.name not in ("dyn", "string", "bool", "int", "uint", "double"):
            return f"{found}, which can't be the value of a header; make a string of it"
    elif purpose == DELAY and expression.type.name not in _TIMES:
        return f"{found}, and a delay is a duration or a timestamp, such as duration(body.wait)"
    elif purpose == PAYLOAD and _holds_a_type(expression.type):
        return f"{found}, which can't be written; take values, not their types"
    return None


def _holds_a_type(kind: Type) -> bool:
    return kind.name == "type" or any(map(_holds_a_type, kind.parameters))
