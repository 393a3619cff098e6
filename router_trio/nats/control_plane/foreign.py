"""Which frames nats-py gets to see: those of its own subscriptions that do not end its reader."""

from __future__ import annotations

import re

from router_trio.errors import ProtocolError
from router_trio.nats.info import quote

_STATUS = b"NATS/1.0"
_FOREIGN = re.compile(rb"H?MSG [!-~]+ [0-9]{1,6}(?: [!-~]+)? [0-9 ]+")
"""What nats-py reads as our parser does."""

_SID = re.compile(rb"[0-9]{1,20}")


def is_for_nats_py(frame: bytes) -> bool:
    """Return True if nats-py should see a frame: a late message of a subscription that we ended is nobody's.

    And what no JetStream API answers, but a server relays, would end nats-py's reader: a subject or a status that is no
    UTF-8, a vertical tab in a subject, a header block without an end. Raises `ProtocolError` for what no server sends.
    """
    line, _, body = frame.partition(b"\r\n")
    arguments = line.split(b" ")
    if not _SID.fullmatch(arguments[2]):
        raise ProtocolError(f"a message for an unknown subscription: {quote(line)}")
    if not _FOREIGN.fullmatch(line):
        return False
    block = body[: int(arguments[-2])] if arguments[0] == b"HMSG" else b""
    return not block or (len(block) > len(_STATUS) and block.isascii())
