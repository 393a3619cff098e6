"""No docstring, comment, message, page or test name uses words that an English-speaking engineer would not use there.

They are understandable, and still make a reader stop: a delivery *comes again* where the field says that it is
redelivered, an error is *told* where others log or report it. `ALLOWED` lists the few uses that are right, and why.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, README, ROOT, SECURITY, modules_of_tests, page

WORDS = {
    "told": "told",
    "said": "said",
    "whoever": "whoever",
    "nobody": "nobody",
    "anew": "anew",
    "in doubt": "in doubt",
    "at work": "at work",
    "of which": "of which",
    "that is none": "(?:that|which) (?:is|are) none",
    "is not to have": "(?:is|are) not to have",
    "comes again": "(?:comes?|came|coming) again",
    "goes back": "(?:goes|went) back",
    "of the time before": "of the time before",
    "so many": "so many",
    "what comes": "what comes",
}
"""The forms of each word, by the name that `ALLOWED` has for it."""

ALLOWED: dict[tuple[str, str], str] = {
    ("of which", "router_trio/telemetry/http/hosts.py"): "a relative clause about addresses, as anyone writes it",
    ("goes back", "docs/explanation/delivery.md"): "the heading says what the event STREAM_WENT_BACK reports",
    ("comes again", "tests/docs/test_words.py"): "an example of such a word",
    ("told", "tests/docs/test_words.py"): "an example of such a word",
}
"""Why a word is right in a file."""

NO_SUBJECT = re.compile(r"def (test_(?:what|who|whoever|whatever|those|nobody|nor)_\w+)")
"""The name of a test that begins with a pronoun, and so does not say what it is about."""


MODULES = sorted((ROOT / "router_trio").rglob("*.py"))
ALERTS = sorted((ROOT / "alerts").glob("*.yml"))
PAGES = [README, SECURITY, ROOT / "CONTRIBUTING.md", *ALERTS, *sorted(DOCS.rglob("*.md"))]
_ANY = [(word, re.compile(rf"\b{form}\b", re.IGNORECASE)) for word, form in WORDS.items()]
_BREAK = re.compile(r"\s*\n\s*(?:[#>*-]\s+)?")


def uses(text: str) -> Iterator[tuple[str, str]]:
    """Yield each word that is used in a text, with its surroundings."""
    text = _BREAK.sub(" ", text)
    for word, form in _ANY:
        for found in form.finditer(text):
            yield word, f"...{text[max(found.start() - 40, 0) : found.end() + 40]}..."


def comments_of(source: str) -> Iterator[str]:
    """Yield the comments of a module, those of successive lines together."""
    comments: dict[int, str] = {}
    first = last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            first = first if line == last + 1 else line
            comments[first] = f"{comments.get(first, '')}{token.string}\n"
            last = line
    yield from comments.values()


def texts_of(source: str) -> Iterator[str]:
    """Yield the comments of a module and its strings, docstrings included."""
    yield from comments_of(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def texts_of_tests(source: str) -> Iterator[str]:
    """Yield the comments, docstrings and function names of a module of tests; its other strings are data."""
    yield from comments_of(source)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name.replace("_", " ")


def disallowed(path: Path, texts: Iterator[str]) -> list[str]:
    """Return the uses of words in the texts of a file, but those that are allowed there."""
    file = str(path.relative_to(ROOT))
    return [f"{file}: {word}: {where}" for text in texts for word, where in uses(text) if (word, file) not in ALLOWED]


def test_docstrings_comments_and_messages_have_none_of_these_words() -> None:
    assert [use for path in MODULES for use in disallowed(path, texts_of(path.read_text(encoding="utf-8")))] == []


def test_tests_have_none_of_these_words() -> None:
    modules = modules_of_tests()
    assert [use for path in modules for use in disallowed(path, texts_of_tests(path.read_text(encoding="utf-8")))] == []


def test_names_of_tests_name_their_subject() -> None:
    mentioned = {name for module in MODULES for name in re.findall(r"::(test_\w+)", module.read_text(encoding="utf-8"))}
    found = {name for module in modules_of_tests() for name in NO_SUBJECT.findall(module.read_text(encoding="utf-8"))}
    assert sorted(found - mentioned) == []


def test_pages_have_none_of_these_words() -> None:
    assert [use for path in PAGES for use in disallowed(path, iter([page(path).prose]))] == []


@pytest.mark.parametrize(("word", "file"), ALLOWED)
def test_an_exception_is_still_needed(word: str, file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    texts = [text] if file.endswith(".md") else [*texts_of(text), *texts_of_tests(text)]
    assert word in {used for one in texts for used, _ in uses(one)}


# --- the check finds what it should ---

SOURCE = '''
"""Ask whoever
listens."""
# What was sent comes
# again later.
nobody = f"{nobody} was told"  # a name may be anything
'''


def test_words_are_found_over_the_ends_of_lines_and_not_in_names() -> None:
    assert [word for text in texts_of(SOURCE) for word, _ in uses(text)] == ["comes again", "whoever", "told"]
