"""The documentation becomes a site: without a warning, and with links out of it that work there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import DOCS, ROOT
from tests.support.command import environment


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
