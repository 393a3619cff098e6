"""The table of permissions, and the purpose of refused publishes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router_trio.protocol.permissions import ACK, PERMISSIONS, PUBLISH, PULL, REQUEST, SUBSCRIBE, Cause, cause_of

CONFIG = (Path(__file__).parents[3] / "docs/deploy/nats-permissions.conf").read_text(encoding="utf-8")
NAMES = {
    "api": "$JS.API",
    "stream": "PAYMENTS",
    "durable": "router",
    "inbox_prefix": "_INBOX_router",
    "source": "orders.*",
    "reply": "",
    "made": "",
    "target": "COPIES",
}
"""The names in docs/deploy/nats-permissions.conf, whose router answers no requests and creates no streams."""


@pytest.mark.parametrize("kind", [PUBLISH, SUBSCRIBE])
def test_the_example_grants_exactly_the_permissions_of_the_table(kind: str) -> None:
    router = CONFIG[CONFIG.index("user: router") : CONFIG.index("user: producer")]
    granted = re.findall(r'(?m)^ +"([^"]+)"', router.partition(f"{kind}: [")[2].partition("]")[0])
    needed = {
        one.of(NAMES | {"destination": destination})
        for one in PERMISSIONS
        for destination in ("eu.*", "copies.*")
        if one.kind == kind and not one.optional and not {"reply", "made"} & {*re.findall(r"{(\w+)}", one.subject)}
    }
    assert {*granted} == needed


@pytest.mark.parametrize(
    ("subject", "cause"),
    [
        ("$JS.ACK.S.D.1.2.3.4.0", Cause(ACK, "$JS.ACK.S.D.>", "S", "D")),
        ("$JS.ACK.hub.hash.S.D.1.2.3.4.0", Cause(ACK, "$JS.ACK.hub.hash.S.D.>", "S", "D")),
        ("$JS.ACK._.hash.S.D.1.2.3.4.0.token", Cause(ACK, "$JS.ACK._.hash.S.D.>", "S", "D")),
        ("$JS.API.CONSUMER.MSG.NEXT.S.D", Cause(PULL, "$JS.API.CONSUMER.MSG.NEXT.S.D", "S", "D")),
        ("$JS.hub.API.CONSUMER.MSG.NEXT.S.D", Cause(PULL, "$JS.hub.API.CONSUMER.MSG.NEXT.S.D", "S", "D")),
        ("$JS.API.STREAM.INFO.S", Cause(REQUEST, "$JS.API.STREAM.INFO.S")),
        ("$JS.ACK.S.D", None),
        ("orders.1", None),
        ("", None),
    ],
)
def test_the_purpose_of_a_refused_publish_is_recognized(subject: str, cause: Cause | None) -> None:
    assert cause_of(subject) == cause


def test_an_api_prefix_is_recognized() -> None:
    asked = "from.hub.API.CONSUMER.MSG.NEXT.S.D"
    assert cause_of(asked, "from.hub.API") == Cause(PULL, asked, "S", "D")
    assert cause_of(asked) is None
