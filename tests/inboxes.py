"""Inboxes for a parser (see `framing.Inbox`)."""

from __future__ import annotations

from router_trio.protocol.framing import RawMessage


class Inbox(list[RawMessage]):
    """One that has a group of its own, or shares one."""

    def __init__(self, group: list[Inbox] | None = None) -> None:
        super().__init__()
        self.group: list[Inbox] = [] if group is None else group
