"""Links of the documentation lead to files and headings that exist, and to pages in the navigation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from tests.docs.pages import DOCS, ROOT, Page, page, pages


def test_links_of_the_pages_lead_to_existing_targets() -> None:
    assert [text for one in pages() for link in one.links if (text := fault(one, link)) is not None] == []


def fault(one: Page, link: str) -> str | None:
    """Return what is wrong with a link of a page; None if it leads to a heading, a file, or out on the web."""
    if re.match(r"[a-z]+:", link):
        return None
    path, _, anchor = link.partition("#")
    target = (one.path.parent / unquote(path)).resolve() if path else one.path
    if not target.exists():
        return f"{one}: {link} leads nowhere"
    if not target.is_relative_to(ROOT):
        return f"{one}: {link} leads out of the project"
    if anchor and anchor not in page(target).anchors:
        return f"{one}: {target.name} has no heading #{anchor}"
    return None


def test_links_are_found() -> None:
    assert sum(len(one.links) for one in pages()) >= 60


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = _files(navigation)
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_first_page_leads_to_every_how_to_page() -> None:
    index = page(DOCS / "index.md")
    assert {one for one in index.links if one.startswith("how-to/")} == {
        f"how-to/{path.name}" for path in (DOCS / "how-to").glob("*.md")
    }


def test_every_page_has_one_title_and_it_comes_first() -> None:
    for one in pages():
        titles = re.findall(r"^# .+$", one.prose, re.MULTILINE)
        assert len(titles) == 1, f"{one}: {titles}"
        assert one.text.startswith(titles[0]), str(one)


def test_the_index_of_runbooks_has_every_alert_with_its_severity() -> None:
    rules = yaml.safe_load((ROOT / "alerts" / "router_trio.rules.yml").read_text(encoding="utf-8"))
    every = [rule for group in rules["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule["labels"]["severity"] for rule in every if "alert" in rule}
    text = page(DOCS / "operations" / "runbooks.md").text
    rows = re.findall(r"^\| \[(\w+)\]\(\.\./runbooks/(\w+)\.md\) \| (\w+) \|", text, re.MULTILINE)
    assert {name: severity for name, _, severity in rows} == alerts
    assert all(name == file for name, file, _ in rows)
    assert {path.stem for path in (DOCS / "runbooks").glob("*.md")} == set(alerts)


def _files(navigation: Any) -> list[str]:
    """Return the files of a navigation, at any depth."""
    if isinstance(navigation, str):
        return [str(Path(navigation))]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [file for part in parts for file in _files(part)]
