"""The kinds of faults of the world around a router. Each is drawn as data, begun and ended by name.

`NOT_YET` lists those that are known to break a promise: they are drawn only on demand, until the cause is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, Protocol

from router_trio.testing import FakeBroker
from router_trio.testing.losses import ADVISORY, KINDS
from tests.simulation.advisories import FORGED as FORGED_ADVISORIES
from tests.simulation.advisories import LATE as LATE_ADVISORIES
from tests.simulation.advisories import LOST as LOST_ADVISORIES
from tests.simulation.advisories import forge
from tests.simulation.forger import FORGED, Forger
from tests.simulation.schedule import Plan

NOT_YET = {
    "forgotten tail": "an ack that is under way meets the new message that has the sequence of the old one: seed 40118",
}
"""Kinds of faults, handlers or lookups that are not drawn, and the fault that each would find. `--also KIND` draws one.
"""


OF_DURABLES = ("durable held",)
"""Kinds drawn together with the deletion of a durable: see `deleted`."""


OF_PERMISSIONS = ("acks refused", "pulls refused", "requests refused")
"""Kinds drawn apart from the others: see `permissions`."""


class Drawn(NamedTuple):
    """The duration of a fault, and its details."""

    seconds: float
    what: dict[str, Any]


OF_FORGERS = (FORGED,)
"""Kinds drawn where a client forges answers: see `forger`."""


OF_ADVISORIES = (FORGED_ADVISORIES, LOST_ADVISORIES, LATE_ADVISORIES)
"""Kinds drawn apart from the others: see `advisories`."""


OF_LIMITS = ("durable limited",)
"""Kinds drawn apart from the others: see `limited`."""


class Scene(Protocol):
    """The world on which a fault acts."""

    brokers: dict[str, FakeBroker]
    forgers: dict[str, Forger]

    def be_as_usual(self, broker: str) -> None:
        """Restore the normal speed of the network to a broker."""

    def publish_too_long(self, broker: str, subject: str) -> None:
        """Publish, as a stranger, to a subject that leaves no room within the subjects of destinations."""

    def begin_second(self) -> None:
        """Start another process of the same router, which shares its durables."""

    def end_second(self) -> None:
        """End the second process in good order."""

    def crash(self, after: float) -> None:
        """Kill the router, and restart it `after` seconds later."""

    def restart(self, after: float) -> None:
        """End the router in good order, and restart it `after` seconds later."""

    def reload(self, routes: int, way: int) -> None:
        """Reload the configuration with some of its routes changed, in ways that no message notices."""


Act = Callable[[Scene, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault. `draw` returns None where the fault makes no sense. `end` undoes all that `begin` did."""

    draw: Callable[[Random, Sequence[str], Sequence[Plan]], Drawn | None]
    begin: Act
    end: Act = lambda scene, what: None


def _lasting(*seconds: float, **details: Sequence[Any]) -> Callable[..., Drawn]:
    """Draw one broker, one of these durations, and one value of each detail."""

    def draw(random: Random, brokers: Sequence[str], routes: Sequence[Plan]) -> Drawn:
        what = {"broker": random.choice(brokers)} | {name: random.choice(values) for name, values in details.items()}
        return Drawn(random.choice(seconds), what)

    return draw


def _at_durable(*seconds: float, **details: Sequence[Any]) -> Callable[..., Drawn | None]:
    """Draw the durable of one of the routes from a stream."""

    def draw(random: Random, brokers: Sequence[str], routes: Sequence[Plan]) -> Drawn | None:
        plans = [plan for plan in routes if plan.stream]
        if not plans:
            return None
        plan = random.choice(plans)
        what: dict[str, Any] = {"broker": plan.broker, "durable": plan.name}
        what |= {name: random.choice(values) for name, values in details.items()}
        return Drawn(random.choice(seconds), what)

    return draw


def _at_source(*seconds: float) -> Callable[..., Drawn]:
    """Draw the subject that one of the routes reads."""

    def draw(random: Random, brokers: Sequence[str], routes: Sequence[Plan]) -> Drawn:
        plan = random.choice(routes)
        subject = "in" if plan.stream else f"core.{plan.name}"
        return Drawn(random.choice(seconds), {"broker": plan.broker, "subject": subject})

    return draw


def _somewhere(*seconds: float, **details: Sequence[Any]) -> Callable[..., Drawn]:
    """Draw a fault of the router itself."""

    def draw(random: Random, brokers: Sequence[str], routes: Sequence[Plan]) -> Drawn:
        return Drawn(random.choice(seconds), {name: random.choice(values) for name, values in details.items()})

    return draw


def _at(act: Callable[..., Any]) -> Act:
    """Call `act` with the broker that was drawn, and the other details."""

    def begin(scene: Scene, what: dict[str, Any]) -> None:
        details = {name: value for name, value in what.items() if name != "broker"}
        # A consumer or a stream may be missing at the moment.
        with suppress(KeyError, ValueError):
            act(scene.brokers[what["broker"]], **details)

    return begin


def _slow_network(broker: FakeBroker, latency: float, jitter: float, dice: int) -> None:
    random = Random(dice)
    broker.trouble.travel(lambda: latency + jitter * random.random())


def _full(broker: FakeBroker, more: int) -> None:
    broker.trouble.limit("OUT", len(broker.messages("OUT")) + more)


def _sink_recreated(broker: FakeBroker) -> None:
    broker.trouble.recreate("OUT")


def _refused(*seconds: float, what: Sequence[str]) -> Fault:
    """Refuse the JetStream requests of the routes of a durable, for lack of permission, for a while."""

    def begin(broker: FakeBroker, durable: str, what: str) -> None:
        broker.deny_publish(what.format(durable=durable))

    def end(broker: FakeBroker, durable: str, what: str) -> None:
        broker.allow_publish(what.format(durable=durable))

    return Fault(_at_durable(*seconds, what=what), _at(begin), _at(end))


SINK = ("OUT",)
ANY = ("IN", "OUT", "PUB")

FAULTS: dict[str, Fault] = {
    # --- the network ---
    "cut": Fault(_lasting(0.0), _at(lambda broker: broker.cut())),
    "half-open": Fault(
        _lasting(0.0, 3.0),
        _at(lambda broker: (broker.trouble.half_open(), broker.cut())),
        _at(lambda broker: broker.trouble.half_open(False)),
    ),
    "down": Fault(_lasting(0.3, 3.0, 12.0), _at(lambda broker: broker.down()), _at(lambda broker: broker.up())),
    "silence": Fault(_lasting(0.3, 3.0, 12.0), _at(lambda broker: broker.blackhole()), _at(lambda broker: broker.up())),
    "slow network": Fault(
        _lasting(5.0, 20.0, latency=(0.001, 0.05, 0.3), jitter=(0.0, 0.05, 0.3), dice=range(1000)),
        _at(_slow_network),
        lambda scene, what: scene.be_as_usual(what["broker"]),
    ),
    "broken while writing": Fault(
        _lasting(0.0, frames=(0, 1, 3, 10, 30)),
        _at(lambda broker, frames: broker.trouble.break_after(to_server=frames)),
    ),
    "broken while reading": Fault(
        _lasting(0.0, frames=(0, 1, 3, 10, 30)),
        _at(lambda broker, frames: broker.trouble.break_after(from_server=frames)),
    ),
    # --- the server ---
    "credentials refused": Fault(
        _lasting(1.0, 5.0),
        _at(lambda broker: broker.refuse_credentials()),
        _at(lambda broker: broker.accept_credentials()),
    ),
    "servers announced": Fault(_lasting(0.0), _at(lambda broker: broker.announce_servers("one:4222", "three:4222"))),
    "lame duck": Fault(
        _lasting(0.5, 3.0), _at(lambda broker: broker.lame_duck()), _at(lambda broker: broker.cut("one:4222"))
    ),
    "publish denied": Fault(
        _lasting(0.1, 0.6, 5.0, pattern=("out.>", "out.>", "got.>", "out.*.d0.>", "pub.>")),
        _at(lambda broker, pattern: broker.deny_publish(pattern)),
        _at(lambda broker, pattern: broker.allow_publish(pattern)),
    ),
    "acks refused": _refused(0.3, 3.0, 12.0, what=("$JS.ACK.IN.{durable}.>", "$JS.ACK.>")),
    "pulls refused": _refused(0.3, 3.0, 12.0, what=("$JS.API.CONSUMER.MSG.NEXT.IN.{durable}",)),
    "requests refused": _refused(
        0.3,
        3.0,
        12.0,
        what=(
            "$JS.API.STREAM.INFO.IN",
            "$JS.API.CONSUMER.INFO.IN.{durable}",
            "$JS.API.CONSUMER.DURABLE.CREATE.IN.{durable}",
            "$JS.API.STREAM.MSG.GET.IN",
            "$JS.API.STREAM.INFO.OUT",
            "$JS.API.>",
        ),
    ),
    # --- answers ---
    **{
        f"{kind} lost": Fault(
            _lasting(0.0, times=(1, 3)), _at(lambda broker, times, kind=kind: broker.trouble.lose(kind, times))
        )
        for kind in KINDS
    },
    **{
        f"{kind} late": Fault(
            _lasting(0.0, times=(1, 3, 10), late=(0.01, 0.5, 6.0)),
            _at(lambda broker, times, late, kind=kind: broker.trouble.delay(kind, late, times)),
        )
        for kind in ("puback", "ack")
    },
    "no pubacks": Fault(
        _lasting(8.0, 35.0),
        _at(lambda broker: broker.trouble.lose("puback", 1_000_000)),
        _at(lambda broker: broker.trouble.lose("puback", 0)),
    ),
    # --- streams ---
    "slow stream": Fault(
        _lasting(2.0, 10.0, seconds=(0.1, 2.0), stream=ANY),
        _at(lambda broker, seconds, stream: broker.trouble.slow_down(stream, seconds)),
        _at(lambda broker, seconds, stream: broker.trouble.slow_down(stream, 0.0)),
    ),
    "full stream": Fault(
        _lasting(0.1, 0.6, 5.0, more=(0, 3)), _at(_full), _at(lambda broker, more: broker.trouble.limit("OUT", None))
    ),
    "election": Fault(
        _lasting(0.0, stream=("OUT", "OUT", *ANY), seconds=(0.1, 0.6, 2.0, 6.0)),
        _at(lambda broker, stream, seconds: broker.trouble.elect(stream, seconds)),
    ),
    "sink missing": Fault(
        _lasting(10.0, 35.0),
        _at(lambda broker: broker.delete_stream("OUT")),
        _at(lambda broker: broker.add_stream("OUT", ["out.>"])),
    ),
    "short window": Fault(
        _lasting(15.0, 25.0, pattern=("out.*.d1.>", "out.*.d0.>")),
        _at(lambda broker, pattern: broker.deny_publish(pattern)),
        _at(lambda broker, pattern: broker.allow_publish(pattern)),
    ),
    "sink made anew": Fault(_lasting(0.0), _at(_sink_recreated)),
    "forgotten tail": Fault(
        _lasting(0.0, count=(1, 5, 30)), _at(lambda broker, count: broker.trouble.forget("IN", count))
    ),
    "restored stream": Fault(
        _lasting(0.0, count=(0, 5, 30)), _at(lambda broker, count: broker.trouble.restore("IN", count))
    ),
    "source made anew": Fault(_lasting(0.0), _at(lambda broker: broker.trouble.recreate("IN"))),
    "source and durable made anew": Fault(
        _at_durable(0.0), _at(lambda broker, durable: broker.trouble.recreate("IN", durable))
    ),
    # --- consumers ---
    "delivered twice": Fault(
        _at_durable(0.0, count=(1, 5, 50)),
        _at(lambda broker, durable, count: broker.trouble.deliver_again("IN", durable, count)),
    ),
    "taken by hand": Fault(
        _at_durable(0.0, count=(1, 1, 3)),
        _at(lambda broker, durable, count: broker.trouble.redeliver_by_hand("IN", durable, count)),
    ),
    "durable deleted": Fault(_at_durable(0.0), _at(lambda broker, durable: broker.delete_consumer("IN", durable))),
    "durable held": Fault(
        _at_durable(0.0, count=(1, 3, 10), delay=(15.0, 30.0)),
        _at(lambda broker, durable, count, delay: broker.trouble.hold("IN", durable, count, delay)),
    ),
    "durable paused": Fault(
        _at_durable(1.0, 10.0),
        _at(lambda broker, durable: broker.trouble.pause_consumer("IN", durable)),
        _at(lambda broker, durable: broker.trouble.pause_consumer("IN", durable, 0.0)),
    ),
    "durable edited": Fault(
        _at_durable(0.0, ack_wait=(1.0, 20.0), max_ack_pending=(1000,)),
        _at(lambda broker, durable, **changes: broker.trouble.edit_consumer("IN", durable, **changes)),
    ),
    "durable narrowed": Fault(
        _at_durable(0.0, max_ack_pending=(1, 3)),
        _at(lambda broker, durable, **changes: broker.trouble.edit_consumer("IN", durable, **changes)),
    ),
    "durable limited": Fault(
        _at_durable(0.0, max_deliver=(1000,)),
        _at(lambda broker, durable, **changes: broker.trouble.edit_consumer("IN", durable, **changes)),
    ),
    "headers only": Fault(
        _at_durable(5.0),
        _at(lambda broker, durable: broker.trouble.edit_consumer("IN", durable, headers_only=True)),
        _at(lambda broker, durable: broker.trouble.edit_consumer("IN", durable, headers_only=False)),
    ),
    "long control line": Fault(_at_source(0.0), lambda scene, what: scene.publish_too_long(**what)),
    "ids used again": Fault(_somewhere(0.0), lambda scene, what: None),
    "small max_payload": Fault(_somewhere(0.0), lambda scene, what: None),
    "second connection": Fault(_somewhere(0.0), lambda scene, what: None),
    "only lame ducks": Fault(
        _lasting(5.0, 15.0),
        _at(lambda broker: (broker.trouble.stay_lame(True), broker.lame_duck())),
        _at(lambda broker: broker.trouble.stay_lame(False)),
    ),
    "second process": Fault(
        _somewhere(3.0, 15.0), lambda scene, what: scene.begin_second(), lambda scene, what: scene.end_second()
    ),
    FORGED: Fault(
        _somewhere(0.0),
        lambda scene, what: scene.forgers[what["broker"]].begin(what),
        lambda scene, what: scene.forgers[what["broker"]].end(what),
    ),
    FORGED_ADVISORIES: Fault(_somewhere(0.0), _at(forge)),
    LOST_ADVISORIES: Fault(_somewhere(0.0), _at(lambda broker, times, late: broker.trouble.lose(ADVISORY, times))),
    LATE_ADVISORIES: Fault(
        _somewhere(0.0), _at(lambda broker, times, late: broker.trouble.delay(ADVISORY, late, times))
    ),
    # --- the router ---
    "crash": Fault(_somewhere(0.0, after=(0.0, 0.5, 8.0)), lambda scene, what: scene.crash(what["after"])),
    "reload": Fault(
        _somewhere(0.0, routes=(*range(1, 16), *[15] * 15), way=range(8)), lambda scene, what: scene.reload(**what)
    ),
    "restart": Fault(_somewhere(0.0, after=(0.0, 0.5, 8.0)), lambda scene, what: scene.restart(what["after"])),
}
"""The faults by their names in a schedule."""

WITHOUT_ORDER = frozenset({"message lost", "half-open", "second process", "durable held"})
"""Kinds that void the promise of order: a server that loses a message of a living link, or sends it to a dead one,
sends the following messages first, and two processes share their routes.
"""

UNTOLD = frozenset(
    {"message lost", "pull lost", "nak lost", "ack lost", "in_progress lost", "silence", "second process"}
    | {"half-open", "durable held"}
)
"""Kinds under which messages wait while no party knows yet that they are missing: `/readyz` reports ok in the meantime.
"""

CRAWLS = frozenset({"slow network", "slow stream", "small max_payload"})
"""Kinds under which messages wait long for their turn though all is well: many fail each time, and are retried."""

SLOW = frozenset({"silence", "slow network"})
"""Kinds under which a correct publish takes long."""

GOES_BACK = frozenset({"restored stream", "source made anew", "source and durable made anew", "forgotten tail"})
"""Kinds that make a stream go back in time."""

LOSES = frozenset(f"{kind} lost" for kind in KINDS)
"""Kinds after which a server waits for messages that will not arrive."""
