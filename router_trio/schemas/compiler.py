"""Compile a checked document to closures: one for each schema and each keyword.

Work that does not depend on the value is done here: patterns are compiled, references resolved, texts of rules made.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from router_trio.errors.quotes import excerpt
from router_trio.expressions.functions.patterns import Pattern
from router_trio.schemas import keywords
from router_trio.schemas.keywords import Check
from router_trio.schemas.misses import Miss, Rule, Run, Seen, escaped
from router_trio.schemas.references import Document, Resolver
from router_trio.schemas.values import TooDeepError

MAX_REFERENCES = 64
"""Maximum number of nested references while a body is validated: recursive schemas fit bodies of about this depth."""

DRAFT_7: Final = "http://json-schema.org/draft-07/schema"
DRAFT_2020: Final = "https://json-schema.org/draft/2020-12/schema"

MAX_PATTERN_MEMORY = 1024**2
"""Bytes that RE2 may use for a pattern of a schema: compiling it takes at most about 10 ms."""

_UNICODE = re.compile(r"\\u([0-9A-Fa-f]{4})")

IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies")
"""Keywords besides `$ref` that apply schemas to the value itself."""

_COMPARED: Mapping[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.ge, "must be at least"),
    "maximum": (operator.le, "must be at most"),
    "exclusiveMinimum": (operator.gt, "must be more than"),
    "exclusiveMaximum": (operator.lt, "must be less than"),
}
_SIZED: Mapping[str, tuple[type[Any], bool, str, str]] = {
    "minLength": (str, True, "at least", "characters"),
    "maxLength": (str, False, "at most", "characters"),
    "minItems": (list, True, "at least", "elements"),
    "maxItems": (list, False, "at most", "elements"),
    "minProperties": (dict, True, "at least", "fields"),
    "maxProperties": (dict, False, "at most", "fields"),
}


_FLAT = frozenset({
    "type", "enum", "const", "pattern", "multipleOf", *_COMPARED, *_SIZED,
    "title", "description", "default", "examples", "format", "$comment", "$anchor", "deprecated", "readOnly",
    "writeOnly",
})  # fmt: skip
"""Keywords whose checks cost little or charge their cost, and those without a check."""


_LISTING = (
    "properties", "required", "dependencies", "dependentRequired", "dependentSchemas", "prefixItems", "allOf", "anyOf",
    "oneOf",
)  # fmt: skip
"""Keywords that go through the names or schemas that they list, besides `items` in draft 7."""


class _Cell:
    """The check of a schema. A schema that refers to itself needs the cell before the check is compiled."""

    __slots__ = ("check", "is_compiled", "root")

    def __init__(self, root: int) -> None:
        self.check: Check | None = None
        self.is_compiled: bool = False
        self.root: int = root


class Compiler:
    """Compiles one document to closures."""

    def __init__(self, document: Document, draft: str) -> None:
        """`draft` is DRAFT_2020 or DRAFT_7."""
        self._document = document
        self.is_draft_7: bool = draft == DRAFT_7
        self._cells: dict[int, _Cell] = {}
        self._bare: dict[Check, tuple[Check, int]] = {}
        schemas = [one for one, _ in document.subschemas if isinstance(one, dict)]
        self.collects: bool = any("unevaluatedProperties" in one or "unevaluatedItems" in one for one in schemas)
        """True if a schema has `unevaluated...`, so that checks have to collect what they evaluated in `Seen`."""

    def root(self) -> Check | None:
        """Return the check of the document; None if every value fits."""
        return self.check(self._document.contents, self._document.resolver, "#")

    def check(self, schema: Any, resolver: Resolver, pointer: str) -> Check | None:
        """Return the check of a schema; None if every value fits. `resolver` is that of the schema itself.

        `pointer` is shown in rules if the schema is not part of the file.
        """
        if schema is True:
            return None
        if schema is False:
            return keywords.never(Rule(pointer, "must not be there"))
        return self._cell(schema, resolver, pointer).check

    def _cell(self, schema: dict[str, Any], resolver: Resolver, pointer: str) -> _Cell:
        known = self._cells.get(id(schema))
        if known is None:
            known = self._cells[id(schema)] = _Cell(self._document.root(resolver))
            known.check = self._compiled(schema, resolver, self._document.pointer(schema, pointer))
            if known.root == id(schema) and known.check is not None and self._document.dynamic:
                known.check = _entering(known.check, known.root)
            known.is_compiled = True
        return known

    def _compiled(self, schema: dict[str, Any], resolver: Resolver, pointer: str) -> Check | None:
        if self.is_draft_7 and "$ref" in schema:
            schema = {"$ref": schema["$ref"]}
        found = _Schema(self, schema, resolver, pointer)
        checks = [one for one in found.checks() if one is not None]
        last = found.unevaluated()
        if not checks and not last:
            return None
        weight = _weight(len(checks), found.listed) + found.weight_of_fields
        check = _all(checks, weight)
        if last:
            return _with_marks_of_its_own(check, last)
        if checks and found.is_flat:
            self._bare[check] = _uncharged(checks), weight
        return check

    def bare(self, check: Check | None) -> tuple[Check | None, int]:
        """Return a check that leaves the charge to its caller, and the cost for the caller to charge.

        Most fields and elements have schemas without parts, whose checks are so fast that a charge for each would slow
        them down.
        """
        return (check, 0) if check is None else self._bare.get(check, (check, 0))

    def below(self, schema: Any, resolver: Resolver, pointer: str) -> Check | None:
        """Return the check of a schema within the schema of `resolver`."""
        return self.check(schema, self._document.below(schema, resolver), pointer)

    def reference(self, reference: str, resolver: Resolver) -> Check | None:
        """Return the check of `$ref`."""
        contents, there = self._document.resolve(reference, resolver)
        if not isinstance(contents, dict):
            return self.check(contents, there, reference)
        cell = self._cell(contents, there, reference)
        # A circle leads back to a schema that is still being compiled, so each circle has a reference that is counted.
        if cell.is_compiled and not self._document.dynamic:
            return cell.check
        return _following(cell)

    def dynamic_reference(self, reference: str, resolver: Resolver) -> Check | None:
        """Return the check of `$dynamicRef`."""
        # Resolving the reference finds the anchors of its resources.
        static = self.reference(reference, resolver)
        schemas = self._document.alternatives(reference, resolver)
        if not schemas:
            return static
        following = {root: _following(self._cell(one, its, reference)) for root, (one, its) in schemas.items()}

        def check(value: Any, run: Run, seen: Seen) -> Miss | None:
            for root in run.scopes:
                if root in following:
                    return following[root](value, run, seen)
            return None if static is None else static(value, run, seen)

        return check


def _weight(checks: int, listed: int) -> int:
    """Return the charge for a value that is compared with `checks` keywords, which list `listed` names or schemas."""
    return 3 + checks + (listed >> 1)


def _all(checks: list[Check], weight: int) -> Check:
    """Return the check of a schema with these keywords, which charges `weight`, its fixed cost."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        # As `Budget.spend`, which is called only to raise: this runs for each part of a body.
        budget = run.budget
        budget.left -= weight
        if budget.left < 0:
            budget.spend(0)
        for one in checks:
            miss = one(value, run, seen)
            if miss is not None:
                return miss
        return None

    return check


def _uncharged(checks: list[Check]) -> Check:
    """Return the check of a schema with these keywords that leaves the charge to its caller."""
    if len(checks) == 1:
        return checks[0]
    if len(checks) == 2:
        first, second = checks
        return lambda value, run, seen: first(value, run, seen) or second(value, run, seen)

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        for one in checks:
            miss = one(value, run, seen)
            if miss is not None:
                return miss
        return None

    return check


def _with_marks_of_its_own(check: Check, last: list[Check]) -> Check:
    """Return the check of a schema with `unevaluated...`, whose checks `last` see only what this schema evaluated."""

    def checked(value: Any, run: Run, seen: Seen) -> Miss | None:
        own: set[Any] = set()
        for one in (check, *last):
            if (miss := one(value, run, own)) is not None:
                return miss
        if seen is not None:
            seen |= own
        return None

    return checked


def _entering(check: Check, root: int) -> Check:
    """Return the check of the root of a resource, which `$dynamicRef` searches meanwhile."""

    def checked(value: Any, run: Run, seen: Seen) -> Miss | None:
        run.scopes.append(root)
        miss = check(value, run, seen)
        run.scopes.pop()
        return miss

    return checked


def _following(cell: _Cell) -> Check:
    """Return the check that follows a reference. It raises TooDeepError if more than MAX_REFERENCES are nested."""

    def check(value: Any, run: Run, seen: Seen) -> Miss | None:
        its = cell.check
        if its is None:
            return None
        if run.references >= MAX_REFERENCES:
            raise TooDeepError
        run.references += 1
        run.scopes.append(cell.root)
        miss = its(value, run, seen)
        run.scopes.pop()
        run.references -= 1
        return miss

    return check


class _Schema:
    """The keywords of one schema."""

    def __init__(self, compiler: Compiler, schema: dict[str, Any], resolver: Resolver, pointer: str) -> None:
        self._compiler = compiler
        self._schema = schema
        self._resolver = resolver
        self._pointer = pointer
        self.weight_of_fields: int = 0
        """The charge for the fields that `properties` checks."""

    @property
    def is_flat(self) -> bool:
        """True if no keyword checks parts of a value or applies another schema."""
        return self._schema.keys() <= _FLAT

    @property
    def listed(self) -> int:
        """The number of names and schemas that the keywords go through for each value."""
        lists = [self._schema[keyword] for keyword in _LISTING if keyword in self._schema]
        items = self._schema.get("items")
        # A keyword of the other draft has any value.
        return sum(
            len(one) for one in [*lists, items if isinstance(items, list) else []] if isinstance(one, list | dict)
        )

    def checks(self) -> list[Check | None]:
        """Return the checks of all keywords but `unevaluated...`."""
        return [*self._of_any_type(), *self._of_objects(), *self._of_lists(), *self._of_the_value_itself()]

    def _rule(self, keyword: str, text: str) -> Rule:
        return Rule(f"{self._pointer}/{keyword}", text)

    def _below(self, schema: Any, *names: str | int) -> Check | None:
        path = "/".join(escaped(str(name)) for name in names)
        return self._compiler.below(schema, self._resolver, f"{self._pointer}/{path}")

    def _of_any_type(self) -> list[Check | None]:
        schema, found = self._schema, list[Check | None]()
        if "type" in schema:
            types = schema["type"]
            pointer = f"{self._pointer}/type"
            found.append(keywords.of_type([types] if isinstance(types, str) else types, pointer))
        if "enum" in schema:
            found.append(keywords.among(schema["enum"], self._rule("enum", "must be one of the values of enum")))
        if "const" in schema:
            found.append(keywords.among([schema["const"]], self._rule("const", "must be the value of const")))
        for keyword, (holds, text) in _COMPARED.items():
            if keyword in schema:
                bound = schema[keyword]
                found.append(keywords.compared(holds, bound, self._rule(keyword, f"{text} {bound}")))
        if "multipleOf" in schema:
            divisor = schema["multipleOf"]
            rule = self._rule("multipleOf", f"must be a multiple of {divisor}")
            found.append(keywords.multiple_of(divisor, rule))
        for keyword, (kind, least, text, unit) in _SIZED.items():
            if keyword in schema:
                bound = schema[keyword]
                found.append(
                    keywords.sized(kind, least, bound, self._rule(keyword, f"must have {text} {bound} {unit}"))
                )
        if "pattern" in schema:
            text = f"must match the pattern {excerpt(schema['pattern'])!r}"
            found.append(keywords.pattern(pattern_of(schema["pattern"]), self._rule("pattern", text)))
        return found

    def _of_objects(self) -> list[Check | None]:
        schema, found = self._schema, list[Check | None]()
        if "required" in schema:
            found.append(keywords.required(schema["required"], f"{self._pointer}/required"))
        if "dependentRequired" in schema and not self._compiler.is_draft_7:
            found.append(self._dependent_required("dependentRequired", schema["dependentRequired"]))
        if "properties" in schema:
            fields = {name: self._below(one, "properties", name) for name, one in schema["properties"].items()}
            bare = {name: self._compiler.bare(one) for name, one in fields.items()}
            self.weight_of_fields = sum(weight for _, weight in bare.values())
            found.append(keywords.properties({name: one for name, (one, _) in bare.items()}))
        patterns = [
            (pattern_of(text), self._below(one, "patternProperties", text))
            for text, one in schema.get("patternProperties", {}).items()
        ]
        if patterns:
            found.append(keywords.pattern_properties(patterns))
        if "additionalProperties" in schema:
            rule, its = self._rest("additionalProperties", "has a field that the schema does not name")
            if its is not None or self._compiler.collects:
                names = list(schema.get("properties", ()))
                found.append(keywords.additional_properties(names, [one for one, _ in patterns], its, rule))
        if "propertyNames" in schema:
            names_check = self._below(schema["propertyNames"], "propertyNames")
            found.append(None if names_check is None else keywords.property_names(names_check))
        return found

    def _rest(self, keyword: str, text: str) -> tuple[Rule, Check | None]:
        """Return the rule and the check of the parts that other keywords do not name."""
        rule, schema = self._rule(keyword, text), self._schema[keyword]
        return rule, keywords.never(rule) if schema is False else self._below(schema, keyword)

    def _of_lists(self) -> list[Check | None]:
        schema, found = self._schema, list[Check | None]()
        first_key, rest_key = ("items", "additionalItems") if self._compiler.is_draft_7 else ("prefixItems", "items")
        first = schema.get(first_key, [])
        if self._compiler.is_draft_7 and "items" in schema and not isinstance(first, list):
            first, rest_key = [], "items"
        elif self._compiler.is_draft_7 and "items" not in schema:
            rest_key = ""
        if first or rest_key in schema:
            checks = [self._below(one, first_key, index) for index, one in enumerate(first)]
            rest = self._below(schema[rest_key], rest_key) if rest_key in schema else None
            if rest is not None or any(checks) or self._compiler.collects:
                rest, weight = self._compiler.bare(rest)
                found.append(keywords.items(checks, rest, weight, marks_rest=rest_key in schema))
        if "contains" in schema:
            bounds = {} if self._compiler.is_draft_7 else schema
            least, most = bounds.get("minContains", 1), bounds.get("maxContains")
            rules = (
                self._rule("contains", f"must have at least {least} elements that fit contains"),
                self._rule("maxContains", f"must have at most {most} elements that fit contains"),
            )
            its = self._below(schema["contains"], "contains")
            found.append(keywords.contains(its, least, most, rules, marks=not self._compiler.is_draft_7))
        if schema.get("uniqueItems") is True:
            found.append(keywords.unique(self._rule("uniqueItems", "has an element twice")))
        return found

    def _of_the_value_itself(self) -> list[Check | None]:
        schema, found = self._schema, list[Check | None]()
        if "$ref" in schema:
            found.append(self._compiler.reference(schema["$ref"], self._resolver))
        if "$dynamicRef" in schema and not self._compiler.is_draft_7:
            found.append(self._compiler.dynamic_reference(schema["$dynamicRef"], self._resolver))
        if "allOf" in schema:
            every = [self._below(one, "allOf", index) for index, one in enumerate(schema["allOf"])]
            found.append(keywords.every([one for one in every if one is not None]))
        if "anyOf" in schema:
            schemas = [self._below(one, "anyOf", index) for index, one in enumerate(schema["anyOf"])]
            found.append(keywords.any_of(schemas, self._rule("anyOf", "fits no schema of anyOf")))
        if "oneOf" in schema:
            schemas = [self._below(one, "oneOf", index) for index, one in enumerate(schema["oneOf"])]
            fits_none = self._rule("oneOf", "fits no schema of oneOf")
            found.append(keywords.one_of(schemas, fits_none, self._rule("oneOf", "fits several schemas of oneOf")))
        if "not" in schema:
            text = "must not fit the schema of not"
            found.append(keywords.negated(self._below(schema["not"], "not"), self._rule("not", text)))
        if "if" in schema:
            condition, then, otherwise = (
                self._below(schema[keyword], keyword) if keyword in schema else None
                for keyword in ("if", "then", "else")
            )
            found.append(keywords.conditional(condition, then, otherwise))
        return [*found, *self._dependencies()]

    def _dependencies(self) -> list[Check | None]:
        keyword = "dependencies" if self._compiler.is_draft_7 else "dependentSchemas"
        dependencies = self._schema.get(keyword, {})
        lists = {name: one for name, one in dependencies.items() if isinstance(one, list)}
        schemas = {name: self._below(one, keyword, name) for name, one in dependencies.items() if name not in lists}
        return [
            self._dependent_required(keyword, lists) if lists else None,
            keywords.dependent_schemas({name: one for name, one in schemas.items() if one is not None}),
        ] * bool(dependencies)

    def _dependent_required(self, keyword: str, dependencies: Mapping[str, list[str]]) -> Check:
        pointer = f"{self._pointer}/{keyword}"
        return keywords.dependent_schemas(
            {
                name: _all([keywords.required(names, pointer)], _weight(1, len(names)))
                for name, names in dependencies.items()
            }
        )

    def unevaluated(self) -> list[Check]:
        """Return the checks of `unevaluatedProperties` and `unevaluatedItems`, which run after all others."""
        found = []
        for keyword, kind, part in (
            ("unevaluatedProperties", dict, "a field"),
            ("unevaluatedItems", list, "an element"),
        ):
            if keyword in self._schema and not self._compiler.is_draft_7:
                rule, its = self._rest(keyword, f"has {part} that no schema allows")
                found.append(keywords.unevaluated(kind, its, rule))
        return found


def pattern_of(text: str) -> Pattern:
    r"""Return the compiled pattern of a schema. Raises BadPattern, or ImportError if RE2 is not installed.

    An escape such as `\u00e9`, which RE2 does not have, is translated to `\x{00e9}`.
    """
    parts = text.split("\\\\")
    return Pattern("\\\\".join(_UNICODE.sub(r"\\x{\1}", part) for part in parts), MAX_PATTERN_MEMORY)
