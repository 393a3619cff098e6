"""How many messages of a stream are read to get those of one subject."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import cast

import pytest

from router_trio.nats.requests import Request, Requests
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import framing

NOT_FOUND: dict[str, object] = {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}


class FakeRequests:
    """Answers requests for the messages of a stream: its subjects, by sequence."""

    def __init__(self, subjects: dict[int, str]) -> None:
        self.subjects = subjects
        self.waiting: dict[int, Request] = {}
        self.sent = 0

    def send(self, subject: bytes, payload: bytes = b"", headers: bytes = b"") -> Request:
        self.sent += 1
        wanted = json.loads(payload)
        sequence, pattern = wanted["seq"], wanted.get("next_by_subj")
        if pattern is not None:
            later = (one for one in self.subjects if one >= sequence and pattern in (">", self.subjects[one]))
            sequence = next(later, 0)
        body = NOT_FOUND
        if sequence in self.subjects:
            data = b64encode(b"x").decode()
            time = "2026-11-29T00:00:00Z"
            body = {"message": {"subject": self.subjects[sequence], "seq": sequence, "data": data, "time": time}}
        request = Request(cast("Requests", self), self.sent, subject)
        frame = framing.publish(b"inbox", json.dumps(body).encode(), reply=b"", headers=b"")
        request.answer = framing.published(frame)
        return request


@pytest.mark.parametrize(("every", "most"), [(1, 1.1), (3, 3.3), (100, 15), (1_000, 15)])
async def test_where_a_subject_is_rare_most_other_messages_are_skipped(every: int, most: float) -> None:
    subjects = {n: "other" if n % every else "wanted" for n in range(1, 20_001)}
    requests = FakeRequests(subjects)
    stored = StoredMessages("S", cast("Requests", requests), "$JS.API")
    batches = stored.batches(1, 20_000, "wanted")
    found = [one.sequence async for batch in batches for one in batch if one.subject == "wanted"]
    assert found == [n for n, subject in subjects.items() if subject == "wanted"]
    assert requests.sent <= most * len(found) + 1


async def test_all_messages_are_read_if_all_are_wanted() -> None:
    requests = FakeRequests(dict.fromkeys(range(1, 1_001), "any"))
    stored = StoredMessages("S", cast("Requests", requests), "$JS.API")
    assert [one.sequence async for batch in stored.batches(1, 1_000, ">") for one in batch] == list(range(1, 1_001))
    assert requests.sent == 1_000
