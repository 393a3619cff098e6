"""Advice on what to write in CEL instead of the syntax of other languages: a table in which mistakes are looked up.

It does not decide whether an expression is valid. It is consulted only where the checker has found a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from router_trio.errors.quotes import excerpt

LONGEST_PART = 60
"""Maximum number of characters of the expression that are quoted in each part of the advice."""

_STRINGS = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
# The patterns match texts whose strings are blanked: see `_blanked`. A name may start only where no longer name
# continues, so that each part of a text is tried from one position only.
_TEXT = r"[\"']\0*[\"']"
_START = r"(?<![\w.])"
_PATH = rf"{_START}[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[(?:{_TEXT}|\d+)\])*"
_DASHED = r"[A-Za-z_]\w*(?:-\w+)+"
_NULL = r"(?:null|NULL|Null|None|nil|undefined)\b"
_NO_NULL = "a header that is missing is not null: "
_BYTES = "the payload is bytes: "

_TABLE = (
    # --- whether something is there ---
    (rf"\bhas\(\s*({_PATH})\.({_DASHED})\s*\)", "a name with '-' must be quoted: write ('{1}' in {0})"),
    (rf"\bhas\(\s*({_PATH})\[({_TEXT})\]\s*\)", "write ({1} in {0})"),
    (rf"\bhas\(\s*({_PATH})\s*,\s*({_TEXT})\s*\)", "write ({1} in {0})"),
    (rf"\bhas\(\s*({_TEXT})\s*\)", "write ({0} in headers), or has(body.name)"),
    (rf"(?<!\.)\b(?:exists|defined|isset)\(\s*({_PATH})\s*\)", "write has({0})"),
    (rf"\bheaders\.([\w-]+)\s*(?:!=|is\s+not)\s*{_NULL}", _NO_NULL + "write ('{0}' in headers)"),
    (rf"\bheaders\.([\w-]+)\s*(?:==?|is)\s*{_NULL}", _NO_NULL + "write !('{0}' in headers)"),
    (rf"\bheaders\[({_TEXT})\]\s*(?:!=|is\s+not)\s*{_NULL}", _NO_NULL + "write ({0} in headers)"),
    (rf"\bheaders\[({_TEXT})\]\s*(?:==?|is)\s*{_NULL}", _NO_NULL + "write !({0} in headers)"),
    (rf"({_PATH})\s+is\s+not\s+{_NULL}", "write {0} != null, or has({0}) to ask whether it is there"),
    (rf"({_PATH})\s+is\s+{_NULL}", "write {0} == null, or !has({0}) to ask whether it is missing"),
    (rf"{_START}is\s+not\b", "write '!=' for is not"),
    (rf"{_START}is\b", "write '==' for is"),
    (rf"({_PATH})\?\.([A-Za-z_]\w*).*", "write has({0}.{1}) && {0}.{1} ..."),
    (rf"({_PATH})\s*\?\?\s*({_TEXT}|[\w.]+)", "write (has({0}) ? {0} : {1})"),
    # --- headers and fields ---
    (rf"({_PATH})\.get\(\s*({_TEXT})\s*,\s*([^()]*[^()\s])\s*\)", "write ({1} in {0} ? {0}[{1}] : {2})"),
    (rf"({_PATH})\.get\(\s*({_TEXT})\s*\)", "write {0}[{1}], and ({1} in {0}) to ask whether it is there"),
    (r"\.get\(", "write map['key'], and ('key' in map) to ask whether it is there"),
    (rf"({_PATH})\.({_DASHED})", "a name with '-' goes in brackets: write {0}['{1}']"),
    (rf"\b(headers|body)\[\s*({_DASHED}|[A-Za-z_]\w*)\s*\]", "the name of a key must be quoted: write {0}['{1}']"),
    (rf"{_START}(headers|body)\(\s*({_TEXT})\s*\)", "write {0}[{1}], with brackets"),
    (rf"{_START}tokens\(\s*(\d+)\s*\)", "write tokens[{0}], with brackets; the first is tokens[0]"),
    (rf"({_PATH})\.(?:size|length|len|count)\b(?:\(\))?", "write size({0})"),
    (rf"{_START}len(?:gth)?\(\s*({_PATH})\s*\)", "write size({0})"),
    (rf"{_START}(?:message|msg|event)\.(subject|headers|payload|body|size|tokens)\b", "write {0}"),
    (rf"({_PATH})\.(?:without|omit)\(\s*({_TEXT})\s*\)", "write omit({0}, {1})"),
    (rf"({_PATH})\.(?:redact|mask)\(\s*({_TEXT})\s*\)", "write mask({0}, {1})"),
    (rf"{_START}(?:hash|md5|sha1)\(\s*({_PATH})\s*\)", "write sha256({0})"),
    (rf"{_START}(?:\$|json|data|message|msg|event|value)\.(\w+)", "the payload as JSON is body: write body.{0}"),
    (r"\{\{.*?\}\}|\$\d", "placeholders are for subjects only: write tokens[0] for the first token of the subject"),
    # --- operators ---
    (rf"({_TEXT}|{_PATH})\s+(?:not|NOT)\s+(?:in|IN)\s+({_PATH})", "write !({0} in {1})"),
    (rf"{_START}(?:not|NOT|Not)\s+({_PATH})\(", "write !{0}(...)"),
    (rf"{_START}(?:not|NOT|Not)\s+({_PATH})", "write !{0}"),
    (rf"{_START}(?:not|NOT|Not)\s*\(", "write !(...)"),
    (rf"{_START}(?:not|NOT|Not)\b", "write '!' for not"),
    (rf"({_PATH})\s+(?:between|BETWEEN)\s+(\S+)\s+(?:and|AND)\s+(\S+)", "write {1} <= {0} && {0} <= {2}"),
    (rf"{_START}(?:and|AND|And)\b|(?<!&)&(?!&)", "write '&&' for and"),
    (rf"{_START}(?:or|OR|Or)\b|(?<!\|)\|(?!\|)", "write '||' for or"),
    (rf"\bpayload\s*(?:!==?|<>)\s*({_TEXT})", _BYTES + "write payload != b{0}"),
    (rf"\bpayload\s*={{1,3}}\s*({_TEXT})", _BYTES + "write payload == b{0}"),
    (rf"({_TEXT})\s*(==|!=)\s*payload\b", _BYTES + "write b{0} {1} payload"),
    (r"\bpayload\.(contains|startsWith|endsWith|matches|split)\b", _BYTES + "write string(payload).{0}(...)"),
    (r"<>|!==|~=", "write '!=' for not equal"),
    (rf"({_PATH})\s*(?:=~|~)\s*({_TEXT})", "a regular expression is matched with {0}.matches({1})"),
    (r"(?<![=!<>])=(?![=~])|===", "compare with '=='"),
    (
        rf"({_PATH})\s+(?:like|LIKE|contains|startsWith|endsWith|matches)\s+({_TEXT})",
        "call a method: {0}.contains({1}), .startsWith, .endsWith or .matches",
    ),
    (rf"\b(?:in|IN)\s*\(\s*((?:{_TEXT}|\d)[^()]*)\)", "a list goes in brackets: write in [{0}]"),
    (rf"{_START}IN\b", "write in, in lower case"),
    (
        rf"({_START}[\w.]+)\s*(<=?|>=?)\s*({_PATH})\s*(<=?|>=?)\s*([\w.]+)",
        "compare twice: write {0} {1} {2} && {2} {3} {4}",
    ),
    (rf"{_START}(?:if|then|else)\b", "write a condition as a ? b : c"),
    # --- values ---
    (rf"{_START}{_NULL}", "write null"),
    (rf"{_START}(?:True|TRUE|yes)\b", "write true"),
    (rf"{_START}(?:False|FALSE|no)\b", "write false"),
    (r";", "an expression is a single value: remove ';', or join two conditions with '&&'"),
)
_CURES = tuple((re.compile(pattern), advice) for pattern, advice in _TABLE)


def cure(text: str, start: int, end: int) -> str:
    """Return what to write instead of the mistake between two positions, `""` if no entry of the table matches there.

    The first entry of the table with a match that touches the mistake is used.
    """
    blanked = _blanked(text)
    for pattern, advice in _CURES:
        for match in pattern.finditer(blanked):
            if match.start() <= end and start <= match.end():
                return advice.format(*_parts(text, match))
    return ""


def _parts(text: str, match: re.Match[str]) -> Iterator[str]:
    """Yield the parts of the original text that the groups of a match cover."""
    for number in range(1, match.re.groups + 1):
        start, end = match.span(number)
        yield excerpt(text[start:end], LONGEST_PART)


def _blanked(text: str) -> str:
    """Return the text with the contents of its strings blanked, so that no word in them is taken for a mistake."""
    return _STRINGS.sub(lambda found: f"{found[0][0]}{chr(0) * (len(found[0]) - 2)}{found[0][-1]}", text)
