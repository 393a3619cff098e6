"""What is known of a configuration while it is read: its data, its problems, and where each value came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from router_trio.errors import Problem
from router_trio.settings.reading.places import Places

PREFIX = "ROUTER_TRIO_"

Location = tuple[str | int, ...]


@dataclass(slots=True)
class Document:
    """The data of a configuration, what is wrong with it already, and which variable or file set which key."""

    data: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    places: Places = field(default_factory=Places)

    def attribute(self, problem: Problem) -> Problem:
        """Add the name of the variable that set the key, if one did, or else its file, if there are several."""
        for path, variable in self.variables.items():
            if problem.path == path or problem.path.startswith((f"{path}.", f"{path}[")):
                problem = replace(problem, message=f"{problem.message} (set by {variable})")
                break
        return problem if problem.source else self.places.located(problem)


def is_model(annotation: Any) -> bool:
    """Return True if a field's annotation is a section."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
