"""For mkdocs: diagrams in Mermaid become pictures that are committed. No reader's browser loads a script for them.

GitHub draws a ```mermaid block itself. The site shows `docs/img/diagrams/HASH.svg`, where HASH is that of the block.
`python docs/diagrams.py` draws what is absent and removes what no page has any more; a test compares both. It needs
merman 0.9.2 from PyPI, which draws without a browser. It is not locked with the rest, since only a change of a diagram
needs it: install it into an environment of its own.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = "img/diagrams"
OPTIONS = """{"site_config": {
    "theme": "neutral", "fontFamily": "Arial, sans-serif", "htmlLabels": false, "flowchart": {"htmlLabels": false}
}}"""

_BLOCK = re.compile(r"^```mermaid\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)


def sources(markdown: str) -> list[str]:
    """Return the diagrams of a page, in their order."""
    return [block["source"] for block in _BLOCK.finditer(markdown)]


def picture(source: str) -> str:
    """Return where the picture of a diagram is, below docs/."""
    return f"{FOLDER}/{hashlib.sha256(source.encode()).hexdigest()[:12]}.svg"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the diagrams of a page by their pictures."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(block: re.Match[str]) -> str:
        heading = re.findall(r"^#+ (.+)$", markdown[: block.start()], re.MULTILINE)[-1]
        return f"![{heading}, as a diagram]({posixpath.relpath(picture(block['source']), folder or '.')})"

    return _BLOCK.sub(replaced, markdown)


def draw() -> None:
    """Draw every diagram that has no picture, and remove pictures without a diagram."""
    from merman import Merman

    wanted = {picture(one): one for page in HERE.rglob("*.md") for one in sources(page.read_text(encoding="utf-8"))}
    for path in (HERE / FOLDER).glob("*.svg"):
        if str(path.relative_to(HERE)) not in wanted:
            path.unlink()
    for name, source in wanted.items():
        path = HERE / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            svg = Merman().render_svg(source, OPTIONS)
            # White behind it, since lines and words are dark in the dark theme as well; and behind words on a line, so
            # that the line does not go through them.
            svg = svg.replace(' style="', ' style="background-color: white; ', 1)
            svg = svg.replace("edgeLabel rect{opacity:0.5;", "edgeLabel rect{opacity:1;")
            path.write_text(f"{svg}\n", encoding="utf-8")
            print(path)


if __name__ == "__main__":
    draw()
