"""Collect the data of a configuration while it is read, with its problems and the origin of each value."""

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
    """The data of a configuration, the problems found so far, and the variable that set each key.

    `ignored` are variables that set nothing and were probably meant to.
    """

    data: dict[str, Any]
    files: Files
    problems: list[Problem] = field(default_factory=list)
    ignored: list[Problem] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    def attribute(self, problem: Problem) -> Problem:
        """Add the place of the key: line, file if there are several, or the name of the variable that set it."""
        for path, variable in self.variables.items():
            if problem.path == path or problem.path.startswith((f"{path}.", f"{path}[")):
                return self.files.located(problem, variable)
        return self.files.located(problem)


def is_model(annotation: Any) -> bool:
    """Return True if a field's annotation is a section."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
