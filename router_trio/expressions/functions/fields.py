r"""Copies of a value without some of its fields, or with a mask in their place: `omit` and `mask`.

A path is the names of keys, separated by dots; `\.` is a dot within a name. A path continues in each element of a
list, so that a sender can't hide a field by putting it into a list. A path that leads to no field has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from router_trio.errors import EvaluationError
from router_trio.expressions.values import MAX_NESTING, Budget, Value

MAX_PATH = 512
"""Maximum number of characters of a path."""
MASK = "****"
"""The text that `mask` puts in place of any value, so that neither its length nor its type remains."""

Tree = dict[str, Any]
"""The paths by their first names: for each name the tree of the names after it, or None for the field itself."""


def steps(path: str) -> list[str]:
    """Return the names of a path. Raises EvaluationError if it is too long, or if a name is empty."""
    if len(path) > MAX_PATH:
        raise EvaluationError(f"a path is longer than {MAX_PATH} characters")
    if "\\" in path:
        names, escaped = [""], False
        for character in path:
            if escaped or character not in ".\\":
                names[-1] += character if not escaped or character in ".\\" else "\\" + character
                escaped = False
            elif character == "\\":
                escaped = True
            else:
                names.append("")
        names[-1] += "\\" * escaped
    else:
        names = path.split(".")
    if not all(names):
        raise EvaluationError("a path is the names of keys, separated by single dots, such as 'card.number'")
    return names


def tree_of(paths: Sequence[str]) -> Tree:
    """Return the tree of these paths. Raises EvaluationError for an invalid one."""
    tree: Tree = {}
    for path in paths:
        *parents, last = steps(path)
        at = tree
        for name in parents:
            below: Tree | None = at.setdefault(name, {})
            if below is None:  # a shorter path takes the entire field
                break
            at = below
        else:
            at[last] = None
    return tree


def omit(value: Value, tree: Tree, message: Any) -> Value:
    """Return the value without the fields of the tree. Raises EvaluationError if it is nested too deeply."""
    return _edited(value, tree, _leave_out, message.budget, 0)


def mask(value: Value, tree: Tree, message: Any) -> Value:
    """Return the value with MASK in place of the fields of the tree. Raises EvaluationError as `omit`."""
    return _edited(value, tree, _hide, message.budget, 0)


EDITS: Final[Mapping[str, Callable[[Value, Tree, Any], Value]]] = {"omit": omit, "mask": mask}
"""The functions that change the fields at paths."""


def _leave_out(entries: dict[Value, Value], name: str) -> None:
    del entries[name]


def _hide(entries: dict[Value, Value], name: str) -> None:
    entries[name] = MASK


def _edited(
    value: Value, tree: Tree, edit: Callable[[dict[Value, Value], str], None], budget: Budget, depth: int
) -> Value:
    """Return a copy of a list or map. Its parts that have no field of the tree are not copied."""
    if depth > MAX_NESTING:
        raise EvaluationError(f"lists and maps are nested more than {MAX_NESTING} levels deep")
    if value.__class__ is list:
        budget.spend(5 + (len(value) >> 1))
        return [
            _edited(one, tree, edit, budget, depth + 1) if one.__class__ is dict or one.__class__ is list else one
            for one in value
        ]
    budget.spend(5 + (len(value) >> 2) + len(tree))
    changed = value
    for name, below in tree.items():
        if name not in value:
            continue
        if changed is value:
            changed = dict(value)
        if below is None:
            edit(changed, name)
        elif (inner := value[name]).__class__ is dict or inner.__class__ is list:
            changed[name] = _edited(inner, below, edit, budget, depth + 1)
    return changed
