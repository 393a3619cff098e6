"""The official JSON-Schema-Test-Suite: finding and reading it, and what is left out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_trio.schemas.compiler import DRAFT_7, DRAFT_2020
from tests.support.go_modules import module_directory

MODULE = "github.com/kaptinlin/jsonschema@v0.4.6"
"""A module that has a copy of the suite."""

DRAFTS = {"draft2020-12": DRAFT_2020, "draft7": f"{DRAFT_7}#"}
OPTIONAL = (
    "anchor", "bignum", "dynamicRef", "float-overflow", "id", "no-schema",
    "non-bmp-regex", "refOfUnknownKeyword", "unknownKeyword",
)  # fmt: skip
"""The optional files that are run, where a draft has them. The others are about `format`, keywords of older
drafts, and regular expressions of ECMAScript that RE2 does not have.
"""
LEFT_OUT = {
    "nothing is fetched": "the schema refers to another document",
    "is not a draft that is known here": "the schema names a meta-schema of its own",
}
"""The groups that are left out, by the error of their schema."""


@dataclass(frozen=True)
class Group:
    """A schema with the bodies that it is tried on: each with its name, and whether it fits."""

    name: str
    schema: Any
    tests: tuple[tuple[str, Any, bool], ...]


def directory() -> Path | None:
    """Return the directory of the suite; None without Go or the module. May block for 60 s to download it."""
    module = module_directory(MODULE)
    return None if module is None else module / "testdata" / "JSON-Schema-Test-Suite" / "tests"


def groups(tests: Path, draft: str) -> Iterator[Group]:
    """Yield the groups of the files of a draft, each schema with the name of its draft."""
    optional = [tests / draft / "optional" / f"{name}.json" for name in OPTIONAL]
    for file in [*sorted((tests / draft).glob("*.json")), *(one for one in optional if one.is_file())]:
        for group in json.loads(file.read_text(encoding="utf-8")):
            schema = group["schema"]
            if isinstance(schema, dict) and file.stem != "no-schema":
                schema = {"$schema": DRAFTS[draft], **schema}
            cases = tuple((one["description"], one["data"], one["valid"]) for one in group["tests"])
            yield Group(f"{file.stem}: {group['description']}", schema, cases)
