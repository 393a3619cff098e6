"""The code map of ARCHITECTURE.md is the tree: each file that it names is there, and each room is on one floor."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS, ROOT

TEXT = (DOCS / "ARCHITECTURE.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "router_trio"


def test_each_file_that_is_named_is_there() -> None:
    named = {path for path in re.findall(r"`([\w./-]+\.(?:py|html|toml|conf))`", TEXT) if "/" in path}
    assert len(named) > 40
    assert [path for path in sorted(named) if not ((PACKAGE / path).exists() or (ROOT / path).exists())] == []


def test_each_room_is_on_one_floor() -> None:
    floors = re.findall(r"^\| \d \| (.*?) \|", TEXT, flags=re.M)
    rooms = sorted(room.rstrip("/") for floor in floors for room in re.findall(r"`([\w/]+)`", floor))
    there = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_") and path.suffix in ("", ".py")}
    assert rooms == sorted(there)
