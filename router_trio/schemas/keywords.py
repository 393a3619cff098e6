"""The closures of all keywords.

A check takes a value, the run and the parts of the value that were evaluated so far (`misses.Seen`). It returns None
for a value that fits, else a `Miss`. A value of a type that the keyword does not apply to fits. Costs are charged as in
`expressions.costs`: the closure charges what depends on the size of the value, the schema that contains it all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from types import NoneType
from typing import Any

from router_trio.expressions.functions.patterns import Pattern
from router_trio.expressions.values import LONG, Budget
from router_trio.schemas.misses import ALL, UNNAMED, Miss, Rule, Run, Seen
from router_trio.schemas.values import token

Check = Callable[[Any, Run, Seen], Miss | None]

_CLASSES: Mapping[str, frozenset[type]] = {
    "array": frozenset({list}),
    "boolean": frozenset({bool}),
    "integer": frozenset({int}),
    "null": frozenset({NoneType}),
    "number": frozenset({int, float}),
    "object": frozenset({dict}),
    "string": frozenset({str}),
}
TYPES: Sequence[str] = tuple(_CLASSES)
"""The names of the types."""
_NAMES = {
    list: "an array",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    dict: "an object",
    str: "a string",
    NoneType: "null",
}
_NUMBERS = _CLASSES["number"]
_SEARCH = 8
"""The cost of a search for a pattern in a short text."""
_FALSE = 5
"""The cost of comparing a value with the schema `false`."""


def of_type(types: Sequence[str], pointer: str) -> Check:
    """Return the check of `type`."""
    classes = frozenset[type]().union(*(_CLASSES[name] for name in types))
    whole = int in classes and float not in classes
    wanted = " or ".join(sorted(types))
    rules = {kind: Rule(pointer, f"must be of type {wanted}, not {name}") for kind, name in _NAMES.items()}
    if len(classes) == 1 and not whole:
        (only,) = classes
        return lambda value, run, seen: None if value.__class__ is only else rules[value.__class__].miss()

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        kind = value.__class__
        if kind in classes or (whole and kind is float and value.is_integer()):
            return None
        return rules[kind].miss()

    return check


def among(values: Sequence[Any], rule: Rule) -> Check:
    """Return the check of `enum` and `const`: the value equals one of these."""
    tokens = frozenset(token(value, Budget(10**9)) for value in values)

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is str:
            if len(value) > LONG:
                run.budget.spend(len(value) >> 7)
            return None if value in tokens else rule.miss()
        return None if token(value, run.budget) in tokens else rule.miss()

    return check


def compared(holds: Callable[[Any, Any], bool], bound: float, rule: Rule) -> Check:
    """Return the check that compares a number with a bound."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        return None if value.__class__ not in _NUMBERS or holds(value, bound) else rule.miss()

    return check


def multiple_of(divisor: float, rule: Rule) -> Check:
    """Return the check of `multipleOf`, which is exact for decimal fractions: 0.3 is a multiple of 0.1."""
    exact = Fraction(repr(divisor))

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        kind = value.__class__
        if kind is int and divisor.__class__ is int:
            return None if value % divisor == 0 else rule.miss()
        if kind not in _NUMBERS:
            return None
        run.budget.spend(80)
        if value - value != 0:  # an infinity
            return rule.miss()
        return None if (Fraction(repr(value)) / exact).denominator == 1 else rule.miss()

    return check


def sized(kind: type[Any], least: bool, bound: float, rule: Rule) -> Check:
    """Return the check of the length of a string, list or object. `least`: the bound is the minimum."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not kind:
            return None
        size = len(value)
        return None if (size >= bound if least else size <= bound) else rule.miss()

    return check


def pattern(compiled: Pattern, rule: Rule) -> Check:
    """Return the check of `pattern`."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not str:
            return None
        run.budget.spend(_SEARCH)
        return None if compiled.found_in(value, run) else rule.miss()

    return check


def unique(rule: Rule) -> Check:
    """Return the check of `uniqueItems`."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not list or len(value) < 2:
            return None
        budget = run.budget
        budget.spend(2 * len(value))
        return None if len({token(one, budget) for one in value}) == len(value) else rule.miss()

    return check


# --- objects ---


def required(names: Sequence[str], pointer: str) -> Check:
    """Return the check of `required`."""
    rules = {name: Rule(pointer, f"lacks {name!r}") for name in names}

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is dict:
            for name in names:
                if name not in value:
                    return rules[name].miss()
        return None

    return check


def dependent_schemas(dependencies: Mapping[str, Check]) -> Check:
    """Return the check of `dependentSchemas`, and of `dependentRequired` with the checks of `required`."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is dict:
            for name, its in dependencies.items():
                if name in value and (miss := its(value, run, seen)) is not None:
                    return miss
        return None

    return check


def property_names(names: Check) -> Check:
    """Return the check of `propertyNames`."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is dict:
            for name in value:
                if (miss := names(name, run, None if seen is None else set())) is not None:
                    miss.path.append(name if run.shows_names else UNNAMED)
                    return miss
        return None

    return check


def properties(fields: Mapping[str, Check | None]) -> Check:
    """Return the check of `properties`."""
    checks = [(name, its) for name, its in fields.items() if its is not None]

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not dict:
            return None
        for name, its in checks:
            if name in value:
                miss = its(value[name], run, None if seen is None else set())
                if miss is not None:
                    miss.path.append(name)
                    return miss
        if seen is not None:
            seen.update(fields.keys() & value.keys())
        return None

    return check


def pattern_properties(fields: Sequence[tuple[Pattern, Check | None]]) -> Check:
    """Return the check of `patternProperties`."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not dict:
            return None
        run.budget.spend(_SEARCH * len(fields) * len(value))
        for compiled, its in fields:
            for name, one in value.items():
                if not compiled.found_in(name, run):
                    continue
                if seen is not None:
                    seen.add(name)
                if its is not None and (miss := its(one, run, None if seen is None else set())) is not None:
                    miss.path.append(name if run.shows_names else UNNAMED)
                    return miss
        return None

    return check


def additional_properties(named: Sequence[str], patterns: Sequence[Pattern], its: Check | None, rule: Rule) -> Check:
    """Return the check of `additionalProperties`. `its` checks the other fields; None if any fits.

    `rule` is that of a field that must not be there, whose name is not shown.
    """
    names = frozenset(named)

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not dict or value.keys() <= names:
            return None
        run.budget.spend((_SEARCH * len(patterns) + 1) * len(value))
        for name, one in value.items():
            if name in names or (patterns and any(compiled.found_in(name, run) for compiled in patterns)):
                continue
            if seen is not None:
                seen.add(name)
            if its is not None and (miss := its(one, run, None if seen is None else set())) is not None:
                if miss.rule is not rule:
                    miss.path.append(name if run.shows_names else UNNAMED)
                return miss
        return None

    return check


# --- lists ---


def items(first: Sequence[Check | None], rest: Check | None, weight: int, *, marks_rest: bool) -> Check:
    """Return the check of `prefixItems` and `items`: `first` checks the first elements, `rest` all others.

    `weight` is charged for each of the others. With `marks_rest` these count as evaluated.
    """
    count = len(first)

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not list:
            return None
        for index, its in enumerate(first[: len(value)]):
            if its is not None and (miss := its(value[index], run, None if seen is None else set())) is not None:
                miss.path.append(index)
                return miss
        if rest is not None:
            if weight:
                run.budget.spend(weight * len(value))
            for index in range(count, len(value)):
                miss = rest(value[index], run, None if seen is None else set())
                if miss is not None:
                    miss.path.append(index)
                    return miss
        if seen is not None:
            seen.update([ALL] if marks_rest else range(count))
        return None

    return check


def contains(its: Check | None, least: float, most: float | None, rules: tuple[Rule, Rule], *, marks: bool) -> Check:
    """Return the check of `contains` with its bounds. `rules` are those of too few and of too many elements.

    With `marks` the elements that fit count as evaluated.
    """
    few, many = rules

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not list:
            return None
        if its is None:  # no check that charges each element
            run.budget.spend(len(value))
        found = 0
        for index, one in enumerate(value):
            if its is None or its(one, run, None if seen is None else set()) is None:
                found += 1
                if seen is not None and marks:
                    seen.add(index)
                elif most is None and found >= least:
                    return None
                if most is not None and found > most:
                    return many.miss()
        return None if found >= least else few.miss()

    return check


# --- schemas for the value itself ---


def every(schemas: Sequence[Check]) -> Check:
    """Return the check of `allOf`."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        for its in schemas:
            if (miss := its(value, run, seen)) is not None:
                return miss
        return None

    return check


def any_of(schemas: Sequence[Check | None], rule: Rule) -> Check:
    """Return the check of `anyOf`. For a value that fits none, it returns the miss of the schema that fits best."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        fits, misses = False, []
        for its in schemas:
            marked: Seen = None if seen is None else set()
            miss = None if its is None else its(value, run, marked)
            if miss is not None:
                misses.append(miss)
                continue
            if seen is None:
                return None
            seen |= marked or set()
            fits = True
        return None if fits else _deepest(misses) or rule.miss()

    return check


def _deepest(misses: Sequence[Miss]) -> Miss | None:
    """Return the only miss with the longest path; None if there are several, or if all are of the value itself."""
    depth = max(len(miss.path) for miss in misses)
    deepest = [miss for miss in misses if len(miss.path) == depth]
    return deepest[0] if depth and len(deepest) == 1 else None


def one_of(schemas: Sequence[Check | None], none: Rule, several: Rule) -> Check:
    """Return the check of `oneOf`. `none` and `several` are the rules of values that fit no schema, or more than one.

    For a value that fits none, it returns the miss of the schema that fits best.
    """

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        fits, misses = False, []
        for its in schemas:
            marked: Seen = None if seen is None else set()
            miss = None if its is None else its(value, run, marked)
            if miss is not None:
                misses.append(miss)
                continue
            if fits:
                return several.miss()
            fits = True
            if seen is not None:
                seen |= marked or set()
        return None if fits else _deepest(misses) or none.miss()

    return check


def negated(its: Check | None, rule: Rule) -> Check:
    """Return the check of `not`."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        fits = its is None or its(value, run, None if seen is None else set()) is None
        return rule.miss() if fits else None

    return check


def conditional(condition: Check | None, then: Check | None, otherwise: Check | None) -> Check:
    """Return the check of `if`, `then` and `else`."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        marked: Seen = None if seen is None else set()
        if condition is None or condition(value, run, marked) is None:
            if seen is not None:
                seen |= marked or set()
            return None if then is None else then(value, run, seen)
        return None if otherwise is None else otherwise(value, run, seen)

    return check


# --- what no other keyword has evaluated ---


def unevaluated(kind: type[Any], its: Check | None, rule: Rule) -> Check:
    """Return the check of `unevaluatedProperties` or `unevaluatedItems`, which runs after all others of its schema.

    `kind` is dict or list. `rule` is that of a part that must not be there.
    """

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        if value.__class__ is not kind or seen is None or ALL in seen:
            return None
        run.budget.spend(len(value))
        parts: Iterable[tuple[Any, Any]] = value.items() if kind is dict else enumerate(value)
        for part, one in parts:
            if part not in seen and its is not None and (miss := its(one, run, set())) is not None:
                if miss.rule is not rule:
                    miss.path.append(part if kind is list or run.shows_names else UNNAMED)
                return miss
        seen.add(ALL)
        return None

    return check


def never(rule: Rule) -> Check:
    """Return the check of the schema `false`, which fits no value."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        run.budget.spend(_FALSE)
        return rule.miss()

    return check
