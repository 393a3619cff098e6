"""`[[positions]]`: which ones are refused, what a reload makes of a change, and the keys of checkpoints."""

from __future__ import annotations

import tomllib

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from router_trio.settings.reload.difference import difference, in_effect

CONFIGURATION = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[connections.other]
servers = ["nats://127.0.0.1:4223"]
[[routes]]
name = "copy"
from = { connection = "main", stream = "SOURCE", durable = "router", filter = "source.*" }
to = [ { connection = "other", subject = "copy.{{wildcard(1)}}" } ]
[[routes]]
name = "core"
from = { connection = "main", subject = "a" }
to = [ { connection = "other", subject = "b" } ]
[[routes]]
name = "both ways"
from = { connection = "main", stream = "SOURCE", durable = "two" }
to = [ { connection = "other", subject = "c" }, { connection = "main", subject = "d" } ]
[[routes]]
name = "shared"
from = { connection = "main", stream = "SOURCE", durable = "three", partitions = 4 }
to = [ { connection = "other", subject = "e" } ]
"""


def settings(*positions: dict[str, str]) -> Settings:
    return Settings(**tomllib.loads(CONFIGURATION), positions=list(positions))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"route": "copi"}, "positions[0].route: there is no route 'copi'; did you mean 'copy'?"),
        ({"route": "core"}, "positions[0].route: route core reads a subject"),
        ({"route": "shared"}, "positions[0].route: route shared has partitions"),
        ({"route": "both ways"}, "positions[0].route: route both ways sends to several connections"),
        ({"consumer": "a.b"}, "positions[0].consumer: 'a.b' contains '.'"),
        ({"bucket": "a.b"}, "positions[0].bucket: 'a.b' contains '.'"),
        ({"interval": "10ms"}, "positions[0].interval"),
    ],
)
def test_a_position_that_is_refused(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        settings({"consumer": "billing", "route": "copy"} | changes)
    assert problem in str(raised.value)


def test_a_position_that_is_given_twice() -> None:
    one = {"consumer": "billing", "route": "copy"}
    with pytest.raises(ConfigurationError, match="is given twice"):
        settings(one, one)


def test_the_key_has_only_characters_that_keys_allow() -> None:
    (one,) = settings({"consumer": "billing", "route": "copy"}).positions
    assert one.key == "copy.billing"
    assert one.model_copy(update={"route": "é a=b"}).key == "=C3=A9=20a=3Db.billing"


def test_a_reload_reports_that_a_change_needs_a_restart() -> None:
    old, new = settings(), settings({"consumer": "billing", "route": "copy"})
    assert difference(old, new).needs_restart == ("positions",)
    assert list(difference(old, new).lines()) == ["positions: not set -> billing of copy"]
    assert in_effect(old, new).positions == []
