"""Public method names that stand on several classes for several reasons.

A definition is a method or property of a class of the package whose name has no underscore before it. Protocols
declare, and do not define. Two classes share a name if

- one inherits from the other, or both from a class of the package that defines it, or
- there is a protocol in the package that declares it, and both are compatible with it: they have, or inherit, all of
  its methods, and its properties as such or as attributes.

Classes that share a name are one group, also by way of a third. A name counts if it has three groups or more: a reader
who meets it has to know which of three it is.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tests.shape.tree import Tree, public_methods

GROUPS = 3
"""Number of groups of classes from which a name counts."""


@dataclass(frozen=True)
class _Class:
    name: str
    where: str
    bases: tuple[str, ...]
    methods: frozenset[str]
    attributes: frozenset[str]

    @property
    def declares(self) -> bool:
        """Return True for a protocol."""
        return "Protocol" in self.bases


class _Classes:
    def __init__(self, tree: Tree) -> None:
        self.all = [
            _Class(
                node.name,
                f"{module.path.as_posix()}:{node.lineno}",
                _bases(node),
                frozenset(public_methods(node)),
                frozenset(_attributes(node)),
            )
            for module in tree.package
            for node in ast.walk(module.syntax)
            if isinstance(node, ast.ClassDef)
        ]
        self._by_name = {one.name: one for one in self.all}
        self._protocols = [one for one in self.all if one.declares]

    def shared(self, one: _Class, name: str) -> set[str]:
        """Return what relates a class to others with this name: the classes that define it first, and protocols."""
        family = [one, *self._ancestors(one)]
        has = frozenset[str]().union(*(each.methods | each.attributes for each in family))
        by = {each.where for each in family if name in each.methods}
        for protocol in self._protocols:
            declared = protocol.methods.union(*(each.methods for each in self._ancestors(protocol)))
            if name in declared and declared <= has:
                by.add(protocol.where)
        return by

    def _ancestors(self, one: _Class) -> Iterator[_Class]:
        for base in one.bases:
            if base in self._by_name:
                yield self._by_name[base]
                yield from self._ancestors(self._by_name[base])


def crowded_names(tree: Tree) -> dict[str, list[list[str]]]:
    """Return the names that count, each with its groups of `class (file:line)`; those with the most groups first."""
    classes = _Classes(tree)
    by_name: dict[str, list[_Class]] = defaultdict(list)
    for one in classes.all:
        if not one.declares:
            for name in one.methods:
                by_name[name].append(one)
    found = {}
    for name, defining in by_name.items():
        groups = _groups([(f"{one.name} ({one.where})", classes.shared(one, name)) for one in defining])
        if len(groups) >= GROUPS:
            found[name] = groups
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _groups(members: Collection[tuple[str, set[str]]]) -> list[list[str]]:
    groups: list[tuple[list[str], set[str]]] = []
    for member, by in members:
        joined: tuple[list[str], set[str]] = ([member], set(by))
        apart = []
        for group in groups:
            if group[1] & by:
                joined = (group[0] + joined[0], group[1] | joined[1])
            else:
                apart.append(group)
        groups = [*apart, joined]
    return [group[0] for group in groups]


def _bases(node: ast.ClassDef) -> tuple[str, ...]:
    """Return the names of the bases."""
    found = []
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(name, ast.Attribute):
            found.append(name.attr)
        elif isinstance(name, ast.Name):
            found.append(name.id)
    return tuple(found)


def _attributes(node: ast.ClassDef) -> Iterator[str]:
    """Yield the names declared in the body of a class, and those that its methods set on `self`."""
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            yield one.target.id
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield inner.attr
