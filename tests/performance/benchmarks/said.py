"""How many messages a contestant said it had lost: in its ledger, or in what it wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ANSWER_WITHIN = 10.0
LOST_FATES = ("lost", "given_up")
_PATTERNS = {"watermill": re.compile(r"level=ERROR"), "mq_bridge": re.compile(r"(?i)\b(error|fail|lost|drop)")}
"""Lines about a message that failed, of those that don't say `not sent`."""
_NOT_SENT = re.compile("not sent")


def said_lost(name: str, log: Path, ended_with: int | None) -> int:
    """Return how many messages it said were lost. One that has ended with an error has said it of one at least.

    Blocks: a router is asked.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    if name.startswith("router_trio") and ended_with is None:
        return _of_ledger(text)
    pattern = _PATTERNS.get(name, _NOT_SENT)
    lines = sum(1 for line in text.splitlines() if pattern.search(line))
    return max(lines, 1 if ended_with else 0)


def _of_ledger(log: str) -> int:
    """What the ledgers of the routes say: lost, given up, or still in hand when nothing more is to come."""
    pages = [json.loads(line)["url"] for line in log.splitlines() if "ROUTER_STATUS_PAGE" in line]
    with urlopen(f"{pages[-1].rstrip('/')}/status", timeout=ANSWER_WITHIN) as answer:
        status: dict[str, Any] = json.load(answer)
    ledgers = [route["ledger"] for route in status["routes"].values()]
    return sum(ledger["in_hand"] + sum(ledger["settled"].get(fate, 0) for fate in LOST_FATES) for ledger in ledgers)
