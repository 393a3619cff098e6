"""Quote text from outside: bounded, printable and without secrets.

Subjects, headers, errors of other programs and descriptions of servers may be as long as a message, contain control
characters, and repeat a URL with its credentials. All messages quote them with `quoted` or `excerpt`. For any text,
`redact` takes time proportional to its length and the other functions bounded time; none of them raises.
"""

from __future__ import annotations

import re

LONGEST_QUOTE = 100
"""Maximum number of characters quoted from one subject, header, error or description."""

LONGEST_TEXT = 500
"""Maximum number of characters in one value of a log line, an event, a span or a status page, quotes included."""

REDACTED = "[redacted]"

_CUT = "…"

# Each of these reads a character a bounded number of times: it begins only where a word of its kind begins, and has
# one way to continue. The parts of a URL are found with `str.find`, in `_without_credentials`.
_SECRETS = (
    "access_?key|api_?key|auth_token|authorization|credentials?|jwt|nkey|pass|passphrase|passwd|password|pwd|secret|"
    "seed|token"
)
_ASSIGNED = re.compile(rf"(?i)(?<![a-z])((?:{_SECRETS})(?:=|[\"'] ?[:=] ?(?=[\"'])))(?:\"[^\"]*\"?|'[^']*'?|\S)\S*")
_NAME_OF_SECRET = re.compile(rf"(?i)(?<![a-z])(?:{_SECRETS}|cookie)(?![a-z])")
_JWT = re.compile(r"(?<![A-Za-z0-9_.-])eyJ[A-Za-z0-9_.-]{16,}")
_SEED = re.compile(r"(?<![A-Za-z0-9])S[A-Z][A-Z2-7]{50,}(?![A-Za-z0-9])")
_KEY_MATERIAL = re.compile(r"(?<![A-Za-z0-9])S[A-Z][A-Z2-7]{24,}(?![A-Za-z0-9])")
"""A seed, also a truncated one: for places where nothing else has this form."""
_BEARER = re.compile(r"(?i)(?<![a-z])((?:bearer|basic) )[A-Za-z0-9+/=._~-]{8,}")
_PEM, _PEM_END = "-----BEGIN", "-----END"
_AUTHORITY_END = re.compile(r"[/?#,'\")>]")
_WORDS = re.compile(r"\S+")
_BARE_COLON = re.compile(r"[^'\"(\[]:")
_LAST_AT = re.compile(r"@(?=[\w\[])")


def quoted(text: str) -> str:
    """Return the text in quotes, escaped as by `repr`; a long text is cut, with its length added."""
    if len(text) <= LONGEST_QUOTE:
        return repr(text)
    return f"{bounded(text, LONGEST_QUOTE)!r} ({len(text)} characters)"


def excerpt(text: str, longest: int = LONGEST_QUOTE) -> str:
    """Return at most `longest` characters of the text, on one line: characters that can't be printed are escaped."""
    text = bounded(text, longest)
    if not text.isprintable():
        text = _cut("".join(one if one.isprintable() else _escaped(one) for one in text), longest)
    return text


def bounded(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return the text if it has at most `longest` characters (`LONGEST_TEXT`); else its beginning, with a mark.

    A text that is cut is redacted first: later, a secret without its end would not be recognized.
    """
    if len(text) <= longest:
        return text
    if len(text) <= 2 * longest:
        return _cut(redact(text), longest)
    # The rest is not read. The cut may be inside credentials: the last word is treated as if its @ followed.
    start = redact(text[: 2 * longest] + "@x").removesuffix("x").removesuffix("@")
    if len(start) < 2 * longest:  # removed secrets may move the cut into the result, where a key may be cut in two
        start = start[: start.rfind(" ") + 1]
    return _cut(start + _CUT, longest)


def text_of_error(error: BaseException, longest: int = LONGEST_QUOTE) -> str:
    """Return an excerpt of the text of an error, or its type if the text is empty or `str` raises."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return excerpt(text or type(error).__name__, longest)


def looks_secret(text: str) -> bool:
    """Return True if the text contains an NKey seed, a JWT or a PEM block, which belong in a file."""
    return "-----" in text or any(kind.search(text) for kind in (_JWT, _KEY_MATERIAL))


def names_secret(name: str) -> bool:
    """Return True if a header or a key with this name holds credentials, such as `X-Api-Key`."""
    return _NAME_OF_SECRET.search(name[:LONGEST_TEXT].replace("-", "_")) is not None


def redact(text: str) -> str:
    """Return the text without credentials.

    These are `user:password@` and `token@` of URLs, values assigned to a word such as `token=`, JWTs, NKey seeds and
    PEM blocks.
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
    """Remove the user part of every URL in a word.

    It extends to the last @ of the word: a password may contain an @ or a slash.
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
    """Remove after a `://` what is not a port: the password of `nats://user:PASSWORD`, without an @."""
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
    # Between the colon and the @ is at least one character, the password.
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
