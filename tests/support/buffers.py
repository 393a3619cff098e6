"""Buffers for a parser (see `framing.MessageBuffer`)."""

from __future__ import annotations

from router_trio.protocol.framing import RawMessage


class MessageBuffer(list[RawMessage]):
    """A buffer with a group of its own, or with a shared one."""

    def __init__(self, group: list[MessageBuffer] | None = None) -> None:
        super().__init__()
        self.group: list[MessageBuffer] = [] if group is None else group
