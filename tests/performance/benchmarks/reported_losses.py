"""Number of messages that a contestant reported as lost: in its ledger, or in its output."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ANSWER_WITHIN = 10.0
LOST_FATES = ("lost", "given_up")
_PATTERNS = {"watermill": re.compile(r"level=ERROR"), "mq_bridge": re.compile(r"(?i)\b(error|fail|lost|drop)")}
"""Lines about a failed message, for contestants that don't print `not sent`."""
_NOT_SENT = re.compile("not sent")


def reported_losses(name: str, log: Path, ended_with: int | None) -> int:
    """Return how many messages it reported as lost. A contestant that ended with an error has reported at least one.

    Blocks: a router is queried.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    if name.startswith("router_trio") and ended_with is None:
        return _of_ledger(text)
    pattern = _PATTERNS.get(name, _NOT_SENT)
    lines = sum(1 for line in text.splitlines() if pattern.search(line))
    return max(lines, 1 if ended_with else 0)


def _of_ledger(log: str) -> int:
    """Return the sum over the ledgers of the routes: lost, given up, or still in hand when nothing more can arrive."""
    pages = [json.loads(line)["url"] for line in log.splitlines() if "ROUTER_STATUS_PAGE" in line]
    with urlopen(f"{pages[-1].rstrip('/')}/status", timeout=ANSWER_WITHIN) as answer:
        status: dict[str, Any] = json.load(answer)
    ledgers = [route["ledger"] for route in status["routes"].values()]
    return sum(ledger["in_hand"] + sum(ledger["settled"].get(fate, 0) for fate in LOST_FATES) for ledger in ledgers)
