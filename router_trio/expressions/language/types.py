"""CEL's types, and the unification of type parameters.

`dyn` is the type of a value whose type depends on the message; it fits everywhere. A type parameter stands for a type
that is inferred, such as the `A` of `list(A)` in the signature of `in`. `Solution` has the types inferred so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Type:
    """A type: its name in CEL, and the element types of a list, a map or a type value."""

    name: str
    parameters: tuple[Type, ...] = ()
    is_parameter: bool = False

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parameters))})" if self.parameters else self.name


DYN = Type("dyn")
INT = Type("int")
UINT = Type("uint")
DOUBLE = Type("double")
BOOL = Type("bool")
STRING = Type("string")
BYTES = Type("bytes")
NULL = Type("null_type")
TIMESTAMP = Type("google.protobuf.Timestamp")
DURATION = Type("google.protobuf.Duration")

SPELLED = {TIMESTAMP.name: "timestamp", DURATION.name: "duration", NULL.name: "null"}
"""Names of types in errors and documentation, where they differ from CEL's names."""

NUMBERS = frozenset({INT, UINT, DOUBLE})
SCALARS = frozenset({INT, UINT, DOUBLE, BOOL, STRING, BYTES, NULL, TIMESTAMP, DURATION})
KEYS = frozenset({INT, UINT, BOOL, STRING})
"""The types that keys of a map may have."""


def list_of(element: Type) -> Type:
    """Return the type of a list with elements of this type."""
    return Type("list", (element,))


def map_of(key: Type, value: Type) -> Type:
    """Return the type of a map with keys and values of these types."""
    return Type("map", (key, value))


def type_of(kind: Type) -> Type:
    """Return the type of `type(x)` for an x of this type."""
    return Type("type", (kind,))


def parameter(name: str) -> Type:
    """Return a type parameter."""
    return Type(name, is_parameter=True)


TYPE_NAMES = {
    **{one.name: one for one in (INT, UINT, DOUBLE, BOOL, STRING, BYTES, NULL, TIMESTAMP, DURATION)},
    "list": list_of(DYN),
    "map": map_of(DYN, DYN),
    "type": type_of(DYN),
}
"""The names of types in expressions, as in `type(x) == int`."""


def spelled(kind: Type) -> str:
    """Return the name of a type for errors and documentation."""
    name = SPELLED.get(kind.name, kind.name)
    if kind.is_parameter:
        return "dyn" if kind.name.startswith("_") else name
    return f"{name}({', '.join(map(spelled, kind.parameters))})" if kind.parameters else name


class Solution:
    """The types that type parameters stand for, found by fitting overloads to their arguments."""

    __slots__ = ("_found", "_made")

    def __init__(self) -> None:
        self._found: dict[str, Type] = {}
        self._made = 0

    def fresh(self) -> Type:
        """Return a new type parameter."""
        self._made += 1
        return parameter(f"_{self._made}")

    def instance(self, kinds: Sequence[Type]) -> list[Type]:
        """Return the types with their parameters replaced by new ones."""
        fresh: dict[str, Type] = {}

        def renewed(kind: Type) -> Type:
            if kind.is_parameter:
                if kind.name not in fresh:
                    fresh[kind.name] = self.fresh()
                return fresh[kind.name]
            return Type(kind.name, tuple(map(renewed, kind.parameters))) if kind.parameters else kind

        return [renewed(kind) for kind in kinds]

    def resolved(self, kind: Type, *, open_as: Type | None = None) -> Type:
        """Return the type with each parameter replaced by the type it stands for, by `open_as` if that is unknown."""
        if kind.is_parameter:
            found = self._found.get(kind.name)
            if found is not None:
                return self.resolved(found, open_as=open_as)
            return kind if open_as is None else open_as
        if not kind.parameters:
            return kind
        return Type(kind.name, tuple(self.resolved(one, open_as=open_as) for one in kind.parameters))

    def fit_all(self, given: Sequence[Type], wanted: Sequence[Type]) -> bool:
        """Return True if each given type fits the wanted one. Then keep what this implies for type parameters."""
        if len(given) != len(wanted):
            return False
        before = dict(self._found)
        if all(self._fit(one, other) for one, other in zip(given, wanted, strict=True)):
            return True
        self._found = before
        return False

    def join(self, one: Type, other: Type) -> Type | None:
        """Return the common type of two types, or None if only `dyn` fits both."""
        return self.general(one, other) if self.fit_all([one], [other]) else None

    def general(self, one: Type, other: Type) -> Type:
        """Return the more general of two types that fit each other, for each of their parts."""
        one, other = self._head(one), self._head(other)
        if one == DYN or other == DYN:
            return DYN
        if one.is_parameter or other.is_parameter:
            return other if one.is_parameter else one
        if "type" in (one.name, other.name):
            return one if one == other else type_of(DYN)
        if one == NULL or other == NULL:
            return other if one == NULL else one
        parts = zip(one.parameters, other.parameters, strict=True)
        return Type(one.name, tuple(self.general(left, right) for left, right in parts))

    def _head(self, kind: Type) -> Type:
        while kind.is_parameter and kind.name in self._found:
            kind = self._found[kind.name]
        return kind

    def _fit(self, given: Type, wanted: Type) -> bool:
        if wanted.is_parameter:
            fits = self._bind(wanted, given)
            if fits is not None:
                return fits
        if given.is_parameter:
            return bool(self._bind(given, wanted))
        if given == DYN or wanted == DYN:
            # A value of type `dyn` may have elements of any type.
            self._open(wanted)
            return True
        if NULL in (given, wanted):
            return given == wanted or (wanted if given == NULL else given) in (TIMESTAMP, DURATION)
        if given.name != wanted.name:
            return False
        if given.name == "type":
            return True
        return all(self._fit(one, other) for one, other in zip(given.parameters, wanted.parameters, strict=True))

    def _open(self, kind: Type) -> None:
        """Bind the parameters within a type to `dyn`."""
        if kind.is_parameter:
            self._bind(kind, DYN)
        for one in kind.parameters:
            self._open(one)

    def _bind(self, name: Type, kind: Type) -> bool | None:
        """Bind a parameter to a type, and return True if they fit. Return None if the type contains the parameter."""
        if name == kind:
            return True
        known = self._found.get(name.name)
        if known is None:
            if self._holds(kind, name):
                return None
            self._found[name.name] = kind
            return True
        if known == kind:
            return True
        if not self._fit(kind, known):
            return False
        wider = self.general(kind, known)
        if wider != name and not self._holds(wider, name):
            self._found[name.name] = wider
        return True

    def _holds(self, kind: Type, name: Type) -> bool:
        if kind.is_parameter:
            found = self._found.get(kind.name)
            return kind == name or (found is not None and self._holds(found, name))
        return any(self._holds(one, name) for one in kind.parameters)
