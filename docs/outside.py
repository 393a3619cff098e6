"""For mkdocs: links that lead out of docs/ point into the repository, where they work on GitHub already."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<=\]\()(?P<target>\.\./[^)#\s]+)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replace the targets of links that leave docs/ by addresses of the repository."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def replaced(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link["target"]))
        return link["target"] if path.startswith("docs/") else f"{config.repo_url}/blob/main/{path}"

    return _LINK.sub(replaced, markdown)
