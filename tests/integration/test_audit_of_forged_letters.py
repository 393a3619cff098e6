"""A dead letter that a client has made up hides no lost copy from `audit` and `find`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import trio

from tests.integration.test_audit import place
from tests.support.command import over_its_links
from tests.support.servers import NatsServer

WITH_LETTERS = """
retry = { attempts = 1 }
dead_letter = { subject = "dead.{{wildcard(1)}}" }
[[routes.to]]
subject = "sink.{{wildcard(1)}}"
jetstream = true
payload = 'string(body.number / (body.number - 3))'
"""
TRUE = {
    "Route": "copy",
    "Reason": "expression",
    "Detail": "division by zero",
    "Attempts": "1",
    "Subject": "source.1",
    "Stream": "SOURCE",
    "Sequence": "2",
    "Time": "2026-12-02T04:00:00.000Z",
}
PAYLOAD = b'{"number": 1}'
FORGED = {
    "only the route": ({"Route": "copy"}, PAYLOAD),
    "no reason": (TRUE | {"Reason": ""}, PAYLOAD),
    "no attempts": (TRUE | {"Attempts": "none"}, PAYLOAD),
    "no time": (TRUE | {"Time": "yesterday"}, PAYLOAD),
    "another stream": (TRUE | {"Stream": "SINK"}, PAYLOAD),
    "another sequence": (TRUE | {"Sequence": "3"}, PAYLOAD),
    "another subject": (TRUE | {"Subject": "source.2"}, PAYLOAD),
    "another payload": (TRUE, b"forged"),
    "another route": (TRUE | {"Route": "other"}, PAYLOAD),
}


@pytest.mark.parametrize("forged", [*FORGED, "nothing: it has everything"])
async def test_a_forged_letter(forged: str, tmp_path: Path, server: NatsServer) -> None:
    fields, payload = FORGED.get(forged, (TRUE, PAYLOAD))
    async with place(tmp_path, server) as here:
        await here.copied(4, WITH_LETTERS)
        assert +(await here.audit()).counts == Counter(there=3, dead_lettered=1)
        stored = await here.stream.stream_messages("SOURCE")
        copies = await here.stream.stream_messages("SINK")
        ids = {one.sequence: one.header("Nats-Msg-Id") or "" for one in copies}
        ((sequence, message_id),) = [(at, one) for at, one in ids.items() if one.startswith("SOURCE:2:")]
        await here.delete("SINK", sequence)
        await trio.sleep(0.2)  # longer than the duplicate window
        named = [("Nats-Msg-Id", f"{message_id.rpartition(':')[0]}:dead:{'A' * 16}")]
        headers = [*named, *((f"Router-Dead-Letter-{name}", value) for name, value in fields.items())]
        await here.stream.publish("dead.1", payload, headers)
        assert stored[1].payload == PAYLOAD
        code, report = await here.command()
        found = await over_its_links("find", "router.toml", "source.1", "--sequence", "2", "--json", cwd=tmp_path)
        ((outcome,),) = (
            [one["outcome"] for one in message["routes"]] for message in json.loads(found.stdout)["messages"]
        )
        if forged in FORGED:
            assert (code, report["counts"]["missing"], report["counts"]["dead_lettered"]) == (1, 1, 1)
            assert outcome == "missing"
        else:  # the message is kept in it, so that nothing is lost
            assert (code, report["counts"]["dead_lettered"], outcome) == (0, 2, "dead_lettered")
