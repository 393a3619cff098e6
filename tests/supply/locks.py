"""The locks in requirements/, parsed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("build", "compile", "demo", "dev", "dist", "runtime", "tools")


@dataclass(frozen=True)
class Pin:
    """A version of a package, for environments where its marker is true."""

    name: str
    version: str
    requirement: Requirement
    hashes: Sequence[str]


@cache
def lock(name: str) -> Sequence[Pin]:
    """Return the pins of a lock. Raise `AssertionError` for a line that is no pin, hash or comment."""
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    pins = []
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        written, *hashes = line.split(" --hash=")
        requirement = Requirement(written.strip())
        assert requirement.url is None, line
        exact = re.fullmatch(r"==([^=*,]+)", str(requirement.specifier))
        assert exact is not None, f"not one exact version: {line}"
        pins.append(Pin(canonicalize_name(requirement.name), exact[1], requirement, [one.strip() for one in hashes]))
    return pins


@cache
def project() -> Mapping[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def asked(name: str) -> list[Requirement]:
    """Return the requirements in pyproject.toml for a lock."""
    runtime = project()["project"]["dependencies"]
    extras = project()["project"]["optional-dependencies"]
    groups = project()["dependency-groups"]
    lists = {
        "build": groups["build"],
        "demo": [*runtime, *extras["embedded"], *groups["build"]],
        "dev": [*runtime, *extras["embedded"], *extras["dev"], *groups["build"]],
        "compile": [*runtime, *groups["build"], *groups["compile"]],
        "dist": [*runtime, *groups["build"], *groups["compile"], *groups["dist"]],
        "runtime": [*runtime, *extras["expressions"], *extras["schemas"]],
        "tools": groups["tools"],
    }
    return [Requirement(text) for text in lists[name]]
