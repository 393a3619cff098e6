"""SECURITY.md leads to the place for reports, and the version is the same wherever it is written."""

from __future__ import annotations

import re

from tests.supply.locks import ROOT, project

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_a_report_goes_to_the_repository_of_the_project() -> None:
    urls = project()["project"]["urls"]
    assert f"{urls['Source']}/security/advisories/new" in TEXT
    assert urls["Security"] == f"{urls['Source']}/security/policy"
    assert not re.search(r"\S+@\S+\.\w+", TEXT), "an address that nobody has"


def test_the_latest_version_is_supported() -> None:
    line = ".".join(project()["project"]["version"].split(".")[:2])
    assert f"| {line} (the latest) | yes |" in TEXT


def test_the_newest_release_of_the_changelog_is_the_version_of_the_package() -> None:
    releases = re.findall(r"^## \[([\d.]+)\] - ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert releases[0] == project()["project"]["version"]
