"""Collect the data of a configuration while it is read, its problems, and where each value came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from router_trio.errors import Problem
from router_trio.settings.reading.files import Files

PREFIX = "ROUTER_TRIO_"

Location = tuple[str | int, ...]


@dataclass(slots=True)
class Document:
    """The data of a configuration, what is wrong with it already, and which variable set which key.

    `ignored` has variables that set nothing, and were probably meant to.
    """

    data: dict[str, Any]
    files: Files
    problems: list[Problem] = field(default_factory=list)
    ignored: list[Problem] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    def attribute(self, problem: Problem) -> Problem:
        """Add where the key stands, and in which of several files, or the name of the variable that set it."""
        for path, variable in self.variables.items():
            if problem.path == path or problem.path.startswith((f"{path}.", f"{path}[")):
                return self.files.located(problem, variable)
        return self.files.located(problem)


def is_model(annotation: Any) -> bool:
    """Return True if a field's annotation is a section."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
