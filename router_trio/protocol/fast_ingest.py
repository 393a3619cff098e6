"""The reply subjects of fast ingest: one answer for many JetStream publishes.

As ADR-50 has them, `PREFIX.ID.FLOW.GAPS.SEQUENCE.OPERATION.$FI`: the batch, how many messages one answer may be for,
what becomes of the batch when a message is missing, the number of the message in it, and what the message is. Pure.
"""

from __future__ import annotations

_SUFFIX = b".$FI"
_FIRST, _NEXT, _LAST = b"0", b"1", b"2"
_MAX_DIGITS = 18


class Numbering:
    """The reply subjects of a batch that every publish of a connection goes with, as long as that is so.

    That of the publish with order N is `base`, a dot, N - `behind`, and `end`.
    """

    __slots__ = ("base", "behind", "end")

    def __init__(self, prefix: bytes, first: int) -> None:
        """`prefix`: see `reply_prefix`. `first` is the order of the first message."""
        self.base: bytes = prefix[:-1]
        self.behind: int = first - 1
        self.end: bytes = b".%b%b" % (_NEXT, _SUFFIX)


def answers_to(inbox: bytes) -> bytes:
    """Return the subject that the answers to all batches of an inbox come to."""
    return inbox + b".*.*.*.*.*" + _SUFFIX


def reply_prefix(inbox: bytes, batch: bytes, flow: int) -> bytes:
    """Return what the reply subjects of a batch begin with. A message that is missing ends the batch."""
    return b"%b.%b.%d.fail." % (inbox, batch, flow)


def reply_to(prefix: bytes, sequence: int, *, last: bool = False) -> bytes:
    """Return the reply subject of the message with this number, from 1 on. The last one ends the batch.

    ADR-50 has an end that is no message as well. Whoever subscribes to the subject would get it as an empty one.
    """
    operation = _LAST if last else _NEXT if sequence > 1 else _FIRST
    return b"%b%d.%b%b" % (prefix, sequence, operation, _SUFFIX)


def answered(subject: bytes) -> tuple[bytes, int] | None:
    """Return which batch, and which number in it, an answer with this subject is about; None if it is none."""
    words = subject.split(b".")
    if len(words) < 7 or not words[-3].isdigit() or len(words[-3]) > _MAX_DIGITS:
        return None
    return words[-6], int(words[-3])
