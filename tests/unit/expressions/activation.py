"""An activation for tests, with given values of variables."""

from __future__ import annotations

from collections.abc import Mapping

from router_trio.errors import EvaluationError
from router_trio.expressions.message import Facts
from router_trio.expressions.values import Budget, Value


class Activation:
    """Variables with given values."""

    record = None
    found_start: bytes | None = None
    found: bytes

    def __init__(self, variables: Mapping[str, Value]) -> None:
        self.__dict__.update(variables)
        self.locals: list[Value] = []
        self.budget = Budget()

    @property
    def header_block(self) -> bytes:
        """Return the headers as a raw block."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return f"NATS/1.0\r\n{lines}\r\n".encode("utf-8", "surrogateescape")

    find_header = Facts.find_header

    def __getattr__(self, name: str) -> Value:
        raise EvaluationError(f"the variable {name!r} has no value")
