"""NATS message headers: an immutable multi-value mapping and its wire form.

The wire form follows ADR-4: `NATS/1.0`, optionally a status and a description, then `Name: value` lines, then an empty
line. Names are case-sensitive and may repeat; order is kept. Decoding is lenient, because servers relay blocks as they
were published; encoding is strict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from router_trio.errors import PublishError, reasons
from router_trio.errors.quotes import excerpt, quoted

VERSION = b"NATS/1.0"
END = b"\r\n\r\n"

FIRST_LINE = VERSION + b"\r\n"
"""The first line of a block without a status."""

_NAME = re.compile(r"[!-9;-~]+")  # printable ASCII without space and colon (RFC 5322 field names, as ADR-4 says)
_BREAK = re.compile(rb"[\r\n]")
_CODE = re.compile(rb"[0-9]{1,3}")
_NUMBER = re.compile(rb"[0-9]{1,18}")

MAX_DESCRIPTION = 100
"""Maximum bytes of a status description that are kept, because it is quoted in errors and log lines."""


class Headers(Mapping[str, str]):
    """The headers of a message: `headers["Name"]` is the first value of a name, `headers.get_all("Name")` all of them.

    Created from a mapping, whose values may be lists, or from pairs of name and value.
    """

    __slots__ = ("_pairs",)

    _pairs: tuple[tuple[str, str], ...]

    def __init__(self, source: Mapping[str, str | list[str]] | Iterable[tuple[str, str]] | None = None) -> None:
        pairs: list[tuple[str, str]] = []
        if isinstance(source, Headers):
            pairs.extend(source._pairs)
        elif isinstance(source, Mapping):
            for name, value in source.items():
                # For the type checker a mapping is also an iterable of pairs; here it never is.
                pairs.extend((name, one) for one in ([value] if isinstance(value, str) else value))  # pyright: ignore[reportArgumentType]
        elif source is not None:
            pairs.extend((name, value) for name, value in source)
        self._pairs = tuple(pairs)

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Return all pairs of name and value, in order. Names may repeat."""
        return self._pairs

    def get_all(self, name: str) -> list[str]:
        """Return all values of `name`, in order."""
        return [value for key, value in self._pairs if key == name]

    def set(self, name: str, value: str) -> Self:
        """Return a copy in which `name` has this value only, at the place of its first value or at the end."""
        pairs: list[tuple[str, str]] = []
        placed = False
        for key, old in self._pairs:
            if key != name:
                pairs.append((key, old))
            elif not placed:
                pairs.append((name, value))
                placed = True
        if not placed:
            pairs.append((name, value))
        return type(self)(pairs)

    def __getitem__(self, name: str) -> str:
        for key, value in self._pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._pairs))

    def __len__(self) -> int:
        return len(dict(self._pairs))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Headers):
            return self._pairs == other._pairs
        return Mapping.__eq__(self, other)

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return f"Headers({list(self._pairs)!r})"


EMPTY = Headers()

HeadersLike = Headers | Mapping[str, str | list[str]] | Iterable[tuple[str, str]] | None
"""The types from which `Headers` can be created."""


def encode(headers: Headers) -> bytes:
    """Return the wire form, `b""` for no headers. Raises `PublishError` for a name or value that is not valid."""
    if not headers._pairs:
        return b""
    require_strings(headers)
    lines = [""]
    names: set[str] = set()
    for name, value in headers._pairs:
        if name not in names:
            if not _NAME.fullmatch(name):
                raise _invalid(
                    f"header name {quoted(name)} is not valid; use printable ASCII without spaces and colons"
                )
            names.add(name)
        if "\r" in value or "\n" in value or "\0" in value:
            raise _invalid(f"header {quoted(name)} has CR, LF or NUL in its value; remove them")
        lines.append(f"{name}: {value}")
    text = "\r\n".join(lines)
    try:
        return VERSION + text.encode("utf-8", "surrogateescape") + END
    except UnicodeEncodeError as error:
        name = text[: error.start].rpartition("\n")[2].partition(":")[0]
        raise _invalid(f"header {quoted(name)} has an unpaired surrogate in its value; remove it") from error


def require_strings(headers: Headers) -> None:
    """Raise `PublishError` if a name or a value is not a string. The headers of a handler are not checked earlier."""
    for name, value in headers._pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise _invalid(f"header {excerpt(repr(name))}: names and values must be strings")


def _invalid(message: str) -> PublishError:
    return PublishError(message, reason=reasons.INVALID_HEADER)


def decode(block: bytes) -> Headers:
    """Decode any received block. Lines without a colon are skipped; invalid UTF-8 becomes surrogate escapes."""
    if not block:
        return EMPTY
    pairs = []
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            pairs.append((name.decode("utf-8", "surrogateescape"), value.strip().decode("utf-8", "surrogateescape")))
    return Headers(pairs)


def status(block: bytes) -> tuple[int, str]:
    """Return the status code (0 to 999) and the description (at most 100 bytes, printable) of the block's first line.

    Return `(0, "")` if it has no status code, or an invalid one.
    """
    first = block[: len(VERSION) + MAX_DESCRIPTION].split(b"\r\n", 1)[0][len(VERSION) :].split(None, 1)
    if not first or not _CODE.fullmatch(first[0]):
        return 0, ""
    description = first[1].decode("utf-8", "replace") if len(first) > 1 else ""
    return int(first[0]), "".join(character if character.isprintable() else "?" for character in description)


def without_status(block: bytes) -> bytes:
    """Return the raw block without a status in its first line; `b""` if no other line is left.

    Only servers may send a status. It is removed from the message of a client, which would otherwise forge one.
    """
    if not block or block.startswith(FIRST_LINE):
        return block
    _, ended, lines = block.partition(b"\r\n")
    return FIRST_LINE + lines if ended and lines not in (b"", b"\r\n") else b""


def find_number(block: bytes, name: bytes) -> int | None:
    """Return the first value of `name` in a raw block if it is an integer from 0 to 10^18 - 1, else None."""
    value = find(block, name)
    return int(value) if value is not None and _NUMBER.fullmatch(value) else None


def find(block: bytes, name: bytes) -> bytes | None:
    """Return the first value of `name` in a raw block up to its first CR or LF, or None. Decodes nothing else."""
    at = block.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    start = at + len(name) + 3
    return one_line(block[start : _line_end(block, start)]).strip()


def one_line(value: bytes) -> bytes:
    """Return a value up to its first CR or LF. For a server a bare one is part of the value, for others a line end.

    Every received value that is written to a header must pass through here, so that it can't inject other headers.
    """
    if b"\n" in value or b"\r" in value:
        return _BREAK.split(value, 1)[0]
    return value


def line(name: str, value: str) -> bytes:
    """Return the line of a header for a raw block, with CRLF. The value is cut at its first CR or LF."""
    return b"%b: %b\r\n" % (name.encode(), one_line(value.encode("utf-8", "surrogateescape")))


def replace(block: bytes, name: bytes, value: bytes) -> bytes:
    """Return the raw block with the first value of `name` replaced, or with the header added at the end.

    The value is cut at its first CR or LF. The old line is removed up to its CRLF, including text after a bare LF.
    """
    value = one_line(value)
    if not block:
        return VERSION + b"\r\n" + name + b": " + value + END
    at = block.find(b"\r\n" + name + b":")
    if at < 0:
        body = block[:-2] if block.endswith(END) else block.rstrip(b"\r\n") + b"\r\n"
        return body + name + b": " + value + END
    return block[: at + 2] + name + b": " + value + (block[_line_end(block, at + 2) :] or END)


def _line_end(block: bytes, start: int) -> int:
    """Return the position of the line's end. The last line may lack CRLF, because servers relay such blocks."""
    end = block.find(b"\r\n", start)
    return len(block) if end < 0 else end


REST_OF_LINE = rb"[^\n]*(?:\n[ \t][^\n]*)*"
"""Pattern for the rest of a header's line and its continuation lines (folding, in RFC 5322)."""


def lines_of(names: Iterable[str]) -> re.Pattern[bytes]:
    """Return a pattern that finds the lines of these headers in a raw block, in any case."""
    starts = "|".join(f"{re.escape(name)}[ \t]*:" for name in names)
    return re.compile(f"\n(?i:{starts})".encode() + REST_OF_LINE)


def removed(block: bytes, lines: re.Pattern[bytes]) -> bytes:
    """Return the raw block without the lines that the pattern finds; `b""` if no header is left."""
    kept, end = bytearray(), 0
    for line in lines.finditer(block):
        kept += block[end : line.start()]
        # The CR of its end is also that of the line before, if that ends in a bare LF.
        if line[0].endswith(b"\r") and not kept.endswith(b"\r"):
            kept += b"\r"
        end = line.end()
    rest = bytes(kept + block[end:])
    if not rest.endswith(END):
        rest = rest.rstrip(b"\r\n") + END
    return b"" if rest == VERSION + END else rest


def without(block: bytes, prefix: bytes) -> bytes:
    """Return the raw block without the headers whose lines start with `prefix`, in any case."""
    first, *lines = block.removesuffix(END).split(b"\r\n")
    unwanted = prefix.lower()
    return b"\r\n".join([first, *(line for line in lines if not line.lower().startswith(unwanted))]) + END
