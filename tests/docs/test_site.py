"""The documentation builds into a site: without a warning, with pictures of its diagrams and working links."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, blocks
from tests.support.command import environment

pytestmark = pytest.mark.slow


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment({"NO_MKDOCS_2_WARNING": "1"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    built = {str(path.relative_to(tmp_path).parent) for path in tmp_path.rglob("index.html")}
    pages = [path.relative_to(DOCS) for path in DOCS.rglob("*.md")]
    first = ("index.md", "README.md")  # the page of its folder
    assert built == {str(page.parent if page.name in first else page.with_suffix("")) for page in pages}
    assert not list(tmp_path.rglob("*.py"))

    index = (tmp_path / "operations" / "runbooks" / "index.html").read_text(encoding="utf-8")
    assert re.search(r'href="https://github\.com/[^"]+/blob/main/alerts/router_trio\.rules\.yml"', index)

    for html in tmp_path.rglob("*.html"):
        text = html.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//', text), f"{html} loads from elsewhere"
        assert not re.search(r'<link[^>]* rel="?stylesheet"?[^>]* href="?(?:https?:)?//', text)
    architecture = (tmp_path / "ARCHITECTURE" / "index.html").read_text(encoding="utf-8")
    assert architecture.count("img/diagrams/") == 6
    assert "mermaid" not in architecture.lower()


def test_every_diagram_has_its_picture() -> None:
    picture = runpy.run_path(str(DOCS / "diagrams.py"))["picture"]
    wanted = {DOCS / picture(block.text) for block in blocks("mermaid")}
    assert len(wanted) >= 4
    committed = set((DOCS / "img" / "diagrams").glob("*.svg"))
    assert committed == wanted, "run `python docs/diagrams.py`, and commit what it drew and removed"
