"""The pages of the documentation, parsed: code blocks with their positions, prose, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SECURITY = ROOT / "SECURITY.md"

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run here: .+ -->\s*\Z")
_OUTPUT = re.compile(r"\A\s*prints\s+```text\n(.*?)```", re.DOTALL)
_ADDED = "# at the end of router.toml"
"""The first line of a configuration that is appended to the previous one on its page."""


def modules_of_tests() -> list[Path]:
    """Return the modules of the tests, in order."""
    return sorted((ROOT / "tests").rglob("*.py"))


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is where its text begins; `output` is what the page claims that it prints, if anything.

    `router_toml` is the configuration that a reader of the page has by then.
    """

    path: Path
    line: int
    language: str
    text: str
    runs: bool
    output: str | None
    router_toml: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A page, read on creation."""

    path: Path
    text: str
    blocks: Sequence[Block]

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        """The inline code of the prose."""
        return _SPAN.findall(self.prose)

    @property
    def links(self) -> list[str]:
        """The targets of its links and images."""
        return _LINK.findall(_SPAN.sub("", self.prose)) + re.findall(r"\[`[^`]*`\]\(([^)\s]+)\)", self.prose)

    @property
    def anchors(self) -> set[str]:
        """The anchors for links to this page."""
        return {_slug(heading) for heading in _HEADING.findall(self.prose)}


@cache
def pages() -> tuple[Page, ...]:
    """Return all pages: those at the top that people read first, and everything below docs/."""
    return tuple(page(path) for path in [README, SECURITY, *sorted(DOCS.rglob("*.md"))])


def page(path: Path) -> Page:
    """Read and parse a page, once."""
    text = path.read_text(encoding="utf-8")
    return Page(path, text, tuple(_blocks(path, text)))


def blocks(*languages: str) -> list[Block]:
    """Return all blocks in these languages, on all pages."""
    return [block for one in pages() for block in one.blocks if block.language in languages]


def _blocks(path: Path, text: str) -> Iterator[Block]:
    router_toml = ""
    for match in _FENCE.finditer(text):
        indent, language, body = match.groups()
        body = "".join(line.removeprefix(indent) for line in body.splitlines(keepends=True))
        said = _OUTPUT.match(text[match.end() :])
        if language == "toml":
            router_toml = f"{router_toml}\n{body}" if body.startswith(_ADDED) else body
        yield Block(
            path=path,
            line=text.count("\n", 0, match.start(3)) + 1,
            language=language,
            text=body,
            runs=_NOT_RUN.search(text[: match.start()]) is None,
            output=said[1] if said else None,
            router_toml=router_toml,
        )


def _slug(heading: str) -> str:
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
