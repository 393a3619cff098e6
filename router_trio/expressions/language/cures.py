"""Tell what to write instead of what other languages would: a table in which each mistake is looked up.

Nothing here decides whether an expression is valid: an entry counts only where something is wrong anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from router_trio.errors.quotes import excerpt

LONGEST_PART = 60
"""Characters of the expression that are repeated of each part of a cure."""

_STRINGS = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
# In the patterns, a string is one whose characters are blanked: see `_blanked`. Names begin where no other one goes on,
# so that each part of a text is looked at from one place only.
_TEXT = r"[\"']\0*[\"']"
_START = r"(?<![\w.])"
_PATH = rf"{_START}[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[(?:{_TEXT}|\d+)\])*"
_DASHED = r"[A-Za-z_]\w*(?:-\w+)+"
_NULL = r"(?:null|NULL|Null|None|nil|undefined)\b"
_NO_NULL = "a header that is missing is not null: "
_BYTES = "the payload is bytes: "

_TABLE = (
    # --- whether something is there ---
    (rf"\bhas\(\s*({_PATH})\.({_DASHED})\s*\)", "a name with '-' goes into quotes: write ('{1}' in {0})"),
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
    (rf"({_PATH})\.({_DASHED})", "a name with '-' goes into brackets: write {0}['{1}']"),
    (rf"\b(headers|body)\[\s*({_DASHED}|[A-Za-z_]\w*)\s*\]", "the name of a key is in quotes: write {0}['{1}']"),
    (rf"{_START}(headers|body)\(\s*({_TEXT})\s*\)", "write {0}[{1}], with brackets"),
    (rf"{_START}tokens\(\s*(\d+)\s*\)", "write tokens[{0}], with brackets; the first is tokens[0]"),
    (rf"({_PATH})\.(?:size|length|len|count)\b(?:\(\))?", "write size({0})"),
    (rf"{_START}len(?:gth)?\(\s*({_PATH})\s*\)", "write size({0})"),
    (rf"{_START}(?:message|msg|event)\.(subject|headers|payload|body|size|tokens)\b", "write {0}"),
    (rf"{_START}(?:\$|json|data|message|msg|event|value)\.(\w+)", "the payload as JSON is body: write body.{0}"),
    (r"\{\{.*?\}\}|\$\d", "a placeholder is for subjects: write tokens[0] for the first token of the subject"),
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
    (rf"\b(?:in|IN)\s*\(\s*((?:{_TEXT}|\d)[^()]*)\)", "a list is in brackets: write in [{0}]"),
    (rf"{_START}IN\b", "write in, in small letters"),
    (
        rf"({_START}[\w.]+)\s*(<=?|>=?)\s*({_PATH})\s*(<=?|>=?)\s*([\w.]+)",
        "compare twice: write {0} {1} {2} && {2} {3} {4}",
    ),
    (rf"{_START}(?:if|then|else)\b", "a condition is written a ? b : c"),
    # --- values ---
    (rf"{_START}{_NULL}", "write null"),
    (rf"{_START}(?:True|TRUE|yes)\b", "write true"),
    (rf"{_START}(?:False|FALSE|no)\b", "write false"),
    (r";", "an expression is one value: leave ';' out, or join two with '&&'"),
)
_CURES = tuple((re.compile(pattern), told) for pattern, told in _TABLE)


def cure(text: str, start: int, end: int) -> str:
    """Return what to write for what is wrong in an expression between two positions, `""` if it is not known.

    The first entry of the table counts that touches the mistake.
    """
    blanked = _blanked(text)
    for pattern, told in _CURES:
        for match in pattern.finditer(blanked):
            if match.start() <= end and start <= match.end():
                return told.format(*_parts(text, match))
    return ""


def _parts(text: str, match: re.Match[str]) -> Iterator[str]:
    """Yield what the groups of a match stand for in the text that is not blanked."""
    for number in range(1, match.re.groups + 1):
        start, end = match.span(number)
        yield excerpt(text[start:end], LONGEST_PART)


def _blanked(text: str) -> str:
    """Return the text with the characters of its strings blanked: no word in them is a mistake."""
    return _STRINGS.sub(lambda found: f"{found[0][0]}{chr(0) * (len(found[0]) - 2)}{found[0][-1]}", text)
