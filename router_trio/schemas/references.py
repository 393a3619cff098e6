"""Resolve the references in a schema with the library `referencing`. Nothing is fetched.

A document consists of resources: its root, and each schema in it with an `$id`. The meta-schemas of JSON Schema are
known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from jsonschema_specifications import REGISTRY
from referencing import Anchor, Registry, Resource, Specification
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DynamicAnchor

from router_trio.schemas.misses import escaped

Resolver = Any
"""referencing's resolver, which has the base URI of a place in a document."""


class UnresolvedError(Exception):
    """A reference leads nowhere in this file."""


class Document:
    """A schema document with its resources. A resource is identified by the `id()` of its root, which stays alive."""

    def __init__(self, contents: Any, specification: Specification[Any]) -> None:
        self.contents: Any = contents
        self._specification = specification
        self._anchors: dict[tuple[int, str], Any] = {}
        self.dynamic: dict[str, dict[int, tuple[Any, Resolver]]] = {}
        """The schemas of each dynamic anchor, by name and resource."""
        self.subschemas: list[tuple[Any, Resolver]] = []
        """All schemas of the document, with the resolver of each."""
        self._schemas: set[int] = set()
        self._crawled: set[int] = set()
        self._kept: list[Any] = [contents]
        self._pointers: dict[int, str] = {}
        self._locate(contents, "#")
        resource = specification.create_resource(contents)
        registry: Any = REGISTRY.combine(Registry().with_resource(resource.id() or "", resource))
        self.resolver: Resolver = registry.crawl().resolver_with_root(resource)
        self._crawl(resource, self.resolver, id(contents), self.subschemas)
        self._crawled.add(id(contents))

    def _locate(self, value: Any, pointer: str) -> None:
        if isinstance(value, dict | list):
            self._pointers[id(value)] = pointer
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, one in items:
                self._locate(one, f"{pointer}/{escaped(str(key))}")

    def is_new(self, schema: Any) -> bool:
        """Return True for a part of the file that has not been found to be a schema: a reference leads to it."""
        return isinstance(schema, dict) and id(schema) in self._pointers and id(schema) not in self._schemas

    def add(self, schema: Any, resolver: Resolver) -> None:
        """Add such a part, and the schemas in it, to `subschemas`."""
        resource = self._specification.create_resource(schema)
        self._crawl(resource, resolver, self.root(resolver), self.subschemas)

    def pointer(self, schema: Any, fallback: str) -> str:
        """Return the JSON pointer of a schema in the file; `fallback` if it is not in the file, as a meta-schema is."""
        return self._pointers.get(id(schema), fallback)

    def _crawl(
        self, resource: Resource[Any], resolver: Resolver, root: int, found: list[tuple[Any, Resolver]] | None
    ) -> None:
        """Find the anchors of a resource, and add all schemas in it to `found`."""
        contents = resource.contents
        if found is not None:
            found.append((contents, resolver))
            self._schemas.add(id(contents))
        for anchor in resource.anchors():
            self._anchors[root, anchor.name] = anchor.resource.contents if isinstance(anchor, Anchor) else contents
            if isinstance(anchor, DynamicAnchor):
                self.dynamic.setdefault(anchor.name, {})[root] = (contents, resolver)
        for one in resource.subresources():
            below = resolver.in_subresource(one)
            self._crawl(one, below, id(one.contents) if one.id() is not None else root, found)

    def below(self, schema: Any, resolver: Resolver) -> Resolver:
        """Return the resolver of a schema within a schema."""
        return resolver.in_subresource(self._specification.create_resource(schema))

    def root(self, resolver: Resolver) -> int:
        """Return the resource in which a resolver resolves."""
        contents = resolver.lookup("#").contents
        if id(contents) not in self._crawled:
            self._crawled.add(id(contents))
            self._kept.append(contents)
            self._crawl(self._specification.create_resource(contents), resolver, id(contents), None)
        return id(contents)

    def resolve(self, reference: str, resolver: Resolver) -> tuple[Any, Resolver]:
        """Return the schema that a reference leads to, with its resolver. Raises UnresolvedError if there is none."""
        uri, _, fragment = reference.partition("#")
        try:
            if not fragment or fragment.startswith("/"):
                found = resolver.lookup(reference)
                return found.contents, found.resolver
            there = resolver.lookup(f"{uri}#").resolver
            return self._anchors[self.root(there), unquote(fragment)], there
        except (Unresolvable, KeyError, ValueError, TypeError):
            # The library raises the last two for a pointer into a text or a number, and for what is not a URI.
            raise UnresolvedError(reference) from None

    def alternatives(self, reference: str, resolver: Resolver) -> dict[int, tuple[Any, Resolver]]:
        """Return the schemas of the dynamic anchor that a `$dynamicRef` leads to, by resource; none if it is static."""
        name = unquote(reference.partition("#")[2])
        if not name or name.startswith("/"):
            return {}
        contents, _ = self.resolve(reference, resolver)
        found = self.dynamic.get(name, {})
        return dict(found) if any(one is contents for one, _ in found.values()) else {}


def references_of(schema: Any) -> Iterator[tuple[str, str]]:
    """Yield each keyword of a schema that refers to another one, with the reference."""
    if isinstance(schema, dict):
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(schema.get(keyword), str):
                yield keyword, schema[keyword]
