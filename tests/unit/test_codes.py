"""The error codes of JetStream are in one table, with their meaning and their cure."""

from __future__ import annotations

import re

import pytest

from router_trio.errors import codes, reasons
from router_trio.errors.codes import CODES, Asked, Code, Kind
from tests.support.compiled import PACKAGE

NUMBER = re.compile(r"(?<![\w.])10[012][0-9]{2}(?![\w.])")


def test_no_other_module_spells_a_code_out() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "codes.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if NUMBER.search(line) and "OverflowError" not in line
    ]
    assert found == []


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: str(code.number))
def test_a_code_has_a_meaning_and_a_cure_that_fit_into_a_sentence(code: Code) -> None:
    assert code.number in codes.ALL
    for text in (code.words, code.means, code.change):
        assert text, code
        assert text[0] not in " `" or code.change == text, text
        assert not text.endswith((".", ";", " ")), text
    assert len(codes.explained(code.number, "x" * 100)) < 400  # a log line has up to 500 characters of a text
    assert "`" not in codes.explained(code.number, code.words)


def test_an_error_has_the_words_of_the_server_its_code_its_meaning_and_the_cure() -> None:
    text = codes.explained(codes.STORE_FAILED, "maximum messages exceeded")
    assert text.startswith("maximum messages exceeded (JetStream error 10077): the stream is full")
    assert text.endswith("see the log of the server")
    assert codes.explained(10499, "brand new") == "brand new (JetStream error 10499)"
    assert codes.explained(0, "an old server") == "an old server"


def test_only_a_refused_publish_is_the_fault_of_a_header() -> None:
    assert all(one.asked is Asked.PUBLISH for one in CODES.values() if one.kind in (Kind.HEADER, Kind.TOO_LARGE))
    assert {reasons.of_code(number) for number in codes.OF_THE_MESSAGE} < reasons.OF_THE_MESSAGE
