"""How much of a text from outside is repeated, and what of it never is.

Subjects, headers, errors of other programs and descriptions of servers may be as long as a message, hold control
characters, and repeat a URL with its credentials. Whoever puts one into a text of ours quotes it with `quoted` or
`excerpt`. Whatever is in a text, `redact` takes time in proportion to its length and all others a bounded time; none
of them raises.
"""

from __future__ import annotations

import re

LONGEST_QUOTE = 100
"""Characters that are repeated of one subject, header, error or description of somebody else."""

LONGEST_TEXT = 500
"""Characters of one value of a log line, an event, a span or a status page: our own words, and a few quotes."""

REDACTED = "[redacted]"

_CUT = "…"

# Each of these looks at a character a bounded number of times: it begins only where a word of its kind begins, and has
# one way to go on. What is between the marks of a URL is found with `str.find`, in `_without_credentials`.
_ASSIGNED = re.compile(
    r"(?i)(?<![a-z])((?:access_?key|api_?key|auth_token|authorization|credentials?|jwt|nkey|pass|passphrase|passwd|"
    r"password|pwd|secret|seed|token)(?:=|[\"'] ?[:=] ?(?=[\"'])))(?:\"[^\"]*\"?|'[^']*'?|\S)\S*"
)
_JWT = re.compile(r"(?<![A-Za-z0-9_.-])eyJ[A-Za-z0-9_.-]{16,}")
_SEED = re.compile(r"(?<![A-Za-z0-9])S[A-Z][A-Z2-7]{50,}(?![A-Za-z0-9])")
_KEY_MATERIAL = re.compile(r"(?<![A-Za-z0-9])S[A-Z][A-Z2-7]{24,}(?![A-Za-z0-9])")
"""A seed, also one that lost its end: for places where nothing else looks like that."""
_BEARER = re.compile(r"(?i)(?<![a-z])((?:bearer|basic) )[A-Za-z0-9+/=._~-]{8,}")
_PEM, _PEM_END = "-----BEGIN", "-----END"
_AUTHORITY_END = re.compile(r"[/?#,'\")>]")
_WORDS = re.compile(r"\S+")
_BARE_COLON = re.compile(r"[^'\"(\[]:")
_LAST_AT = re.compile(r"@(?=[\w\[])")


def quoted(text: str) -> str:
    """Return the text in quotes, escaped as `repr` does; of a long one the beginning, and how long it is."""
    if len(text) <= LONGEST_QUOTE:
        return repr(text)
    return f"{bounded(text, LONGEST_QUOTE)!r} ({len(text)} characters)"


def excerpt(text: str, longest: int = LONGEST_QUOTE) -> str:
    """Return the text, at most `longest` characters of it, on one line: what can't be printed is escaped."""
    text = bounded(text, longest)
    if not text.isprintable():
        text = _cut("".join(one if one.isprintable() else _escaped(one) for one in text), longest)
    return text


def bounded(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return the text if it is not longer than that, at most `LONGEST_TEXT`; else its beginning, with a mark.

    What is cut is redacted: a secret that lost its end would not be recognized by whoever shows the text.
    """
    if len(text) <= longest:
        return text
    if len(text) <= 2 * longest:
        return _cut(redact(text), longest)
    # No more of it is read. That may end in the middle of credentials: the last word is read as if its @ came next.
    start = redact(text[: 2 * longest] + "@x").removesuffix("x").removesuffix("@")
    if len(start) < 2 * longest:  # what was taken out may bring the end into sight, where a key may be cut in two
        start = start[: start.rfind(" ") + 1]
    return _cut(start + _CUT, longest)


def told_by(error: BaseException, longest: int = LONGEST_QUOTE) -> str:
    """Return an excerpt of what an error says, or its type if it says nothing or can't be asked."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return excerpt(text or type(error).__name__, longest)


def looks_secret(text: str) -> bool:
    """Return True if this is, or holds, an NKey seed, a JWT or a PEM block: what belongs into a file."""
    return "-----" in text or any(kind.search(text) for kind in (_JWT, _KEY_MATERIAL))


def redact(text: str) -> str:
    """Return the text with credentials taken out.

    That is `user:password@` and `token@` of URLs, what is assigned to a word such as `token=`, JWTs, NKey seeds and PEM
    blocks.
    """
    if _PEM in text:
        text = _without_pem(text)
    if "@" in text or "://" in text:
        text = _WORDS.sub(lambda word: _without_credentials(word[0]), text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(rf"\1{REDACTED}", text)
    text = _BEARER.sub(rf"\1{REDACTED}", text)
    return _SEED.sub(REDACTED, _JWT.sub(REDACTED, text))


def _without_credentials(word: str) -> str:
    """Take the user part out of every URL of a word.

    Up to the last @ of the word: a password may itself hold an @ or a slash.
    """
    if "://" in word:
        word = _without_user_part(word)
    if "@" in word:
        word = _without_bare_user_part(word)
    return word


def _without_user_part(word: str) -> str:
    last = word.rfind("@")
    mark = -1
    while (mark := word.find("://", mark + 1)) >= 0:
        if mark and word[mark - 1].isalnum():
            break
    else:
        return word
    start = mark + 3
    if last >= start:
        word = word[:start] + word[last + 1 :]
    return word[:start] + "://".join(map(_without_password, word[start:].split("://")))


def _without_password(part: str) -> str:
    """Of what follows a `://`, take out what is no port: the password of `nats://user:PASSWORD`, whose @ is missing."""
    bracket = part.find("]") if part.startswith("[") else -1
    colon = part.find(":", bracket + 1)
    end = _AUTHORITY_END.search(part)
    if colon < 0 or (end is not None and end.start() < colon):
        return part
    port = part[colon + 1 : end.start() if end is not None else len(part)].rstrip(".;:!)]}")
    if not port or (len(port) <= 5 and port.isascii() and port.isdigit()):
        return part
    return part[: colon + 1] + REDACTED


def _without_bare_user_part(word: str) -> str:
    last = max((found.start() for found in _LAST_AT.finditer(word)), default=-1)
    colon = _BARE_COLON.search(word, 0, max(last, 0))
    # Between the colon and the @ there is at least one character, the password.
    if colon is None or last - colon.end() < 1:
        return word
    start = 1 + max(word.rfind(mark, 0, colon.end() - 1) for mark in "'\"([")
    return word[:start] + word[last + 1 :]


def _without_pem(text: str) -> str:
    kept, position = [], 0
    while (begin := text.find(_PEM, position)) >= 0:
        kept += [text[position:begin], REDACTED]
        end = text.find(_PEM_END, begin)
        line_end = -1 if end < 0 else text.find("-----", end + len(_PEM_END))
        if line_end < 0:
            return "".join(kept)
        position = line_end + len("-----")
    return "".join([*kept, text[position:]])


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + _CUT


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
