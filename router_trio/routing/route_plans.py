"""Plans of routes: which messages they take, and where each would be sent. Pure; shared by routing and `explain`."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import blake2b
from random import randrange
from typing import TYPE_CHECKING, Any

from router_trio.errors import MappingError, reasons
from router_trio.errors.quotes import quoted
from router_trio.protocol import schedules
from router_trio.protocol.stream_config import StreamConfig
from router_trio.routing.policy import hops
from router_trio.settings import BreakerSettings, DeadLetterSettings, DestinationSettings, RouteSettings, Settings
from router_trio.settings.checks.partitions import declared_copy
from router_trio.settings.checks.resolve import servers_of
from router_trio.settings.expressions import DELAY, HEADER, KEY, PAYLOAD, PER, WHEN, compile_for
from router_trio.settings.retry import RetryNames, RetryScheduleSettings
from router_trio.settings.routes.destination import destination_of, retries_of
from router_trio.settings.routes.destinations.delayed import constant_delay
from router_trio.settings.routes.destinations.kind import DestinationKind
from router_trio.settings.routes.sources.partitioned import partitioning_of
from router_trio.states import DestinationState, RouteState
from router_trio.subjects.inboxes import never_replied_to
from router_trio.subjects.mapping import Mapping
from router_trio.subjects.patterns import is_valid_subject, matches, reserved_namespace

if TYPE_CHECKING:
    # For type checkers alone: routes without expressions need nothing of it, and start without it.
    from router_trio.expressions.body import BodyReader
    from router_trio.expressions.expression import Expression
    from router_trio.routing.policy.delay import Delay
    from router_trio.routing.policy.failed_messages import Numbering
    from router_trio.routing.policy.strategies import Strategy
    from router_trio.routing.policy.transform import Transform
    from router_trio.schemas.schema import Schema

Handler = Callable[..., Any]

_DIGEST_BYTES = 12
"""Enough that no two copies of one message get the same id, by accident or on purpose."""


def copy_id(route: str, template: str, target: bytes, number: int = 0) -> bytes:
    """Return the end of the `Nats-Msg-Id` of a copy: see `Destination.copy_id`."""
    which = [route.encode(), template.encode(), target, *([b"%d" % number] if number else [])]
    digest = blake2b(b"\0".join(which), digest_size=_DIGEST_BYTES).digest()
    return b":" + urlsafe_b64encode(digest)


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination of a route. `template` is the configured subject; it labels metrics and spans.

    - `shown`: where it sends, by the keys of the configuration. `stream`: the configured stream that stores its
      messages, though it may not take the subject; None if none is configured.
    - `carries_reply`: the reply subject of a core message is kept. `never_replied_to`: prefixes of reply subjects that
      are never kept. `keep`: control headers that are kept.
    - `reserved`: prefixes of subjects to which only the configuration may send.
    - `own_ids`: the `Nats-Msg-Id` of a copy is made from its place in the source, and not from the sender's id.
    - `when`, `weight` and `mirror` (the share of messages that it gets a copy of, None if it is not a mirror) are for
      the route's strategy.
    - `stored_under` is the pattern of the subjects that are published to. That is the mapping's, except for schedules
      of delayed copies, whose `delay` is a duration, or `due` an expression for it; `schedule_prefix` is theirs.
    - `payload` and `set_headers` replace what was received, `remove` are headers that are dropped, `ttl` is in seconds,
      0 for none.
    - `hop_limit` is that of the route, 0 for none, and `passed_as` its name in messages: see `policy.hops`.
      `counts_each_hop`: the limit is configured, and is exact.
    - `subject_prefix` is put in front of a subject that a handler gives. `from_bucket`: messages are operations of a KV
      bucket. `last_writer`: the bucket has other writers.
    - `number`: how many destinations before it have its connection and template, and get copies of the same messages.
    """

    route: str
    connection: str
    template: str
    kind: DestinationKind
    shown: dict[str, str | bool]
    mapping: Mapping
    carries_reply: bool
    keep: tuple[str, ...]
    own_ids: bool
    reserved: tuple[str, ...]
    never_replied_to: tuple[bytes, ...]
    when: Expression | None = None
    weight: int = 1
    mirror: Fraction | None = None
    payload: Expression | None = None
    set_headers: tuple[tuple[str, Expression], ...] = ()
    remove: tuple[str, ...] = ()
    ttl: int = 0
    breaker: BreakerSettings | None = None
    hop_limit: int = 0
    counts_each_hop: bool = False
    passed_as: bytes = b""
    stream: str | None = None
    subject_prefix: str = ""
    from_bucket: bool = False
    last_writer: bool = False
    stored_under: str = ""
    schedule_prefix: str | None = None
    delay: float = 0.0
    due: Expression | None = None
    number: int = 0

    @property
    def other_templates(self) -> tuple[str, ...]:
        """Examples of the subjects besides `template` that its messages are stored under."""
        return () if self.schedule_prefix is None else (f"{self.schedule_prefix}.digest",)

    @property
    def waits_for_puback(self) -> bool:
        """True if a stream has to confirm the copies: see `DestinationKind`."""
        return self.kind.waits_for_puback

    def state(self, route: RouteState, *, dead_letters: bool = False) -> DestinationState:
        """Return the destination's state in a route. `dead_letters`: it receives what the route gives up."""
        return DestinationState(
            route,
            self.connection,
            self.template,
            self.stored_under or self.mapping.pattern,
            waits_for_puback=self.waits_for_puback,
            shown=self.shown,
            dead_letters=dead_letters,
            stream=self.stream,
            scheduled=None if self.schedule_prefix is None else self.mapping.pattern,
        )

    @property
    def expressions(self) -> Iterator[Expression]:
        """All expressions that are evaluated for a copy, or to decide whether there is one."""
        for one in (self.when, self.payload, self.due, *(expression for _, expression in self.set_headers)):
            if one is not None:
                yield one

    def transform(self) -> Transform | None:
        """Return the transform that makes a copy of a message; None if it is sent unchanged."""
        changes = self.set_headers or self.remove or self.ttl
        if self.payload is None and self.schedule_prefix is None and not changes:
            return None
        from router_trio.routing.policy.transform import Transform

        counted = [name.lower() for name in hops.NAMES if self.hop_limit]
        set_headers = [
            (name, expression.evaluate) for name, expression in self.set_headers if name.lower() not in counted
        ]
        return Transform(
            payload=None if self.payload is None else self.payload.evaluate,
            set_headers=set_headers,
            remove=self.remove,
            ttl=self.ttl,
        )

    def hops(self) -> hops.Hops | None:
        """Return what counts the routes that its messages pass; None if they are not counted."""
        return hops.Hops(self.hop_limit, self.passed_as, each=self.counts_each_hop) if self.hop_limit else None

    def delays(self) -> Delay | None:
        """Return the delay of its copies; None if they are published at once."""
        if self.schedule_prefix is None:
            return None
        from router_trio.routing.policy.delay import Delay

        return Delay(self.schedule_prefix, seconds=self.delay, evaluate=None if self.due is None else self.due.evaluate)

    def subject_for(self, subject: str) -> str:
        """Return the subject to which a message with this subject is sent. Raises `MappingError`."""
        target = self.mapping.apply(subject)
        self.check_reserved(target)
        return target

    def check_reserved(self, target: str) -> None:
        """Raise `MappingError` (`reserved_subject`) for a subject to which only the configuration may send.

        Its beginning was chosen by the sender. Servers would answer it, or take it for an answer, with the router's
        permissions.
        """
        namespace = self._reserves(target)
        if namespace is not None:
            raise MappingError(
                f"the message would go to {quoted(target)}, below {namespace}, reserved for NATS itself; begin "
                f"the destination {self.template!r} with a token of your own, or write {namespace!r} if it is meant",
                reason=reasons.RESERVED_SUBJECT,
            )

    def copy_id(self, target: bytes) -> bytes:
        """Return the end of the `Nats-Msg-Id` of a copy, which distinguishes it from other copies of its message.

        It is made from route, template and subject, so that the same copy has the same id, whichever process sends it
        over whichever connection, before and after a restart. A subject drawn at random is not included. A `number` is
        added to tell the copies of one message for the same subject apart.
        """
        return copy_id(self.route, self.template, target if self.mapping.deterministic else b"", self.number)

    def has_scheduled(self, subject: str, block: bytes) -> bool:
        """Return True if a stored message is the schedule of one of its copies, as its subject and headers prove.

        Others may publish below `schedule_prefix`, and have schedules of their own there.
        """
        target, own_id = schedules.wanted(block)
        if self.schedule_prefix is None or not own_id.endswith(self.copy_id(target)):
            return False
        return schedules.is_stored_as(subject, self.schedule_prefix, own_id)

    def covers(self, target: str) -> bool:
        """Return True if a message could be mapped to this subject. A handler can choose another one."""
        return is_valid_subject(target) and matches(self.mapping.pattern, target) and not self._reserves(target)

    def _reserves(self, target: str) -> str | None:
        return reserved_namespace(target, self.mapping.literal_start, *self.reserved)


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """Where failed messages wait as schedules if their next attempt is more than `after` seconds away.

    `destination` is that of the schedules, in `stream`, below `prefix`, under the `names` of the route.
    """

    destination: Destination
    stream: str
    prefix: str
    names: RetryNames
    after: float

    @property
    def place(self) -> tuple[str, str]:
        """The stream, and the prefix of the subjects there."""
        return self.stream, self.prefix


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """A compiled route. Its subjects match `pattern`: the subscription, or a stream's filters or `>`.

    `when` selects the messages that it takes (others are filtered, see `policy.strategies.WHEN`), `key` groups
    messages, `dead_letter` is the destination of messages that are given up, each value of `per` has a limit of its
    own. `never_replied_to`: see `subjects.inboxes`. `partition_key` returns the key of a subject by which
    messages are ordered; None if that is the subject itself, or the value of `key`.
    """

    name: str
    connection: str
    pattern: str
    destinations: tuple[Destination, ...]
    settings: RouteSettings
    handler: Handler | None = field(default=None, compare=False)
    when: Expression | None = None
    key: Expression | None = None
    dead_letter: Destination | None = None
    per: Expression | None = None
    never_replied_to: tuple[bytes, ...] = ()
    partition_key: Callable[[bytes], bytes] | None = field(default=None, compare=False)
    retry_schedule: RetrySchedule | None = None
    passed_as: bytes = b""
    """Its name in messages that it has passed on: see `policy.hops`."""
    sends: tuple[tuple[str, str], ...] = ()
    """Where it sends, for the metadata of its durables: servers, `""` for that of its source, and templates."""
    copy: StreamConfig | None = None
    """How `[[streams]]` wants the copy of its stream, if it has partitions and reads a copy."""

    @property
    def decides(self) -> bool:
        """True if not every message is sent to every destination: `when` and the strategy then have to be evaluated."""
        mirrors = any(one.mirror is not None or one.when is not None for one in self.destinations)
        return self.when is not None or self.settings.strategy != "all" or mirrors

    @property
    def by_key(self) -> bool:
        """True if messages are routed by key: see `RouteSettings.goes_by_key`."""
        return self.settings.goes_by_key(self.handler is not None)

    @property
    def ordered_by(self) -> str | None:
        """The expression whose values have their messages in order; None if subjects do."""
        return self.settings.key if self.by_key else None

    @property
    def looks(self) -> bool:
        """True if it has to inspect messages, or changes what it sends."""
        by_value = self.per is not None or (self.by_key and self.key is not None)
        return self.decides or self.transforms or self.checks or by_value

    @property
    def schema(self) -> Schema | None:
        """The schema that bodies must fit; None if any body does."""
        file = self.settings.schema_file
        return None if file is None else file.schema

    @property
    def checks(self) -> bool:
        """True if it checks messages that it takes, by a hop limit or a schema."""
        return self.limits_hops or self.settings.schema_file is not None

    @property
    def hop_limit(self) -> int:
        """Maximum number of routes that a message may pass through; 0 for any number."""
        return hops.DEFAULT_LIMIT if self.settings.hop_limit is None else self.settings.hop_limit

    @property
    def limits_hops(self) -> bool:
        """True if the configuration limits the number of routes that a message may pass through: circles are meant."""
        return bool(self.settings.hop_limit)

    @property
    def transforms(self) -> bool:
        """True if a destination gets changed messages."""
        return any(one.transform() is not None for one in self.destinations)

    @property
    def expressions(self) -> list[Expression]:
        """All expressions that are evaluated for a message."""
        own = [one for one in (self.when, self.key, self.per) if one is not None]
        return own + [expression for one in self.destinations for expression in one.expressions]

    def reader(self) -> BodyReader:
        """Return a decoder of bodies for all expressions of the route: each body once, and only the fields they use."""
        from router_trio.expressions.body import WITHOUT_RECORDS, reader_for

        if self.settings.schema_file is not None:  # which reads the entire body
            return WITHOUT_RECORDS
        return reader_for(one.body_fields for one in self.expressions)

    def strategy(self, healthy: Callable[[int], bool] = lambda index: True) -> Strategy:
        """Return the strategy that chooses destinations, with its counters at the start: one per route and process.

        `healthy` returns True if a destination is connected and accepts messages. `policy.strategies` describes its
        use.
        """
        from router_trio.routing.policy.strategies import Candidate, strategy_for

        candidates = [
            Candidate(name, None if one.when is None else one.when.evaluate, one.weight, one.mirror)
            for name, one in zip(self._names, self.destinations, strict=True)
        ]
        key = header = None
        if self.key is not None:
            key, header = self.key.evaluate, self.key.header_value
        return strategy_for(self.settings.strategy, candidates, key=key, key_header=header, healthy=healthy)

    @property
    def numbering(self) -> Numbering:
        """The places of its destinations, as they are remembered over reloads."""
        from router_trio.routing.policy.failed_messages import Numbering

        real = zip(self._names, self.destinations, strict=True)
        return Numbering(self.settings.strategy, tuple(None if one.mirror is not None else name for name, one in real))

    @property
    def _names(self) -> Iterator[bytes]:
        """The names of its destinations, the same in each process and over reloads: connection and subject."""
        for index, one in enumerate(self.destinations):
            name = f"{one.connection}\0{one.template}".encode("utf-8", "surrogatepass")
            before = sum(
                (other.connection, other.template) == (one.connection, one.template)
                for other in self.destinations[:index]
            )
            yield name + b"\0%d" % before if before else name

    @property
    def stream(self) -> str | None:
        """The stream that it reads; None if it reads none."""
        return self.settings.source.kind.stream(self.settings.source)

    @property
    def copies_bucket(self) -> bool:
        """True if it writes operations of a KV bucket to another one, without a handler."""
        if self.handler is not None or not self.settings.source.kind.is_bucket:
            return False
        return any(one.kind.is_bucket for one in self.destinations)

    @property
    def hidden(self) -> int:
        """The number of characters of each subject that expressions and handlers do not see."""
        source = self.settings.source
        return len(source.kind.subject_prefix(source))

    @property
    def connections(self) -> frozenset[str]:
        """The connections that its destinations need."""
        return frozenset(destination.connection for destination in self.destinations)


def compile_routes(
    settings: Settings,
    handlers: dict[str, Handler] | None = None,
    random: Callable[[int], int] = randrange,
) -> list[RoutePlan]:
    """Compile the routes of validated settings, in order. `handlers` are those of routes that have one, by name."""
    plans = []
    # Once: there may be thousands of routes.
    never_replied = never_replied_to(one.inbox_prefix for one in settings.connections.values())
    for route in settings.routes:
        source = route.source
        destinations = _numbered(
            [_destination(settings, route, to, random, never_replied) for to in route.to], route.strategy
        )
        handler = (handlers or {}).get(route.name)
        when = _compiled(route.when, WHEN, route)
        key = _compiled(route.key, KEY, route)
        per = None if route.limit is None else _compiled(route.limit.per, PER, route)
        plan = RoutePlan(route.name, source.connection, source.pattern, destinations, route, handler, when, key)
        plan = replace(plan, per=per, never_replied_to=never_replied, passed_as=_passed_as(settings, route))
        plan = replace(plan, sends=_sends(settings, plan))
        if key is None and (partitioning := partitioning_of(source)) is not None:
            plan = replace(plan, partition_key=partitioning.key_of())
        if source.partitions is not None:
            plan = replace(plan, copy=declared_copy(source, settings.connections, settings.streams))
        if route.dead_letter is not None:
            plan = replace(plan, dead_letter=_dead_letter(settings, route, route.dead_letter, random, never_replied))
        if route.retry is not None and route.retry.schedule is not None:
            scheduled = _retry_schedule(settings, route, route.retry.schedule, random, never_replied)
            plan = replace(plan, retry_schedule=scheduled)
        plans.append(plan)
    return plans


def _destination(
    settings: Settings,
    route: RouteSettings,
    to: DestinationSettings,
    random: Callable[[int], int],
    never_replied: tuple[bytes, ...],
) -> Destination:
    source, kind = route.source, to.kind_for(route.source.kind)
    api = settings.connections[to.connection].api
    template = kind.published_to(to, api)
    mapping = source.mapping(template, random)
    constant = None if to.delay is None else constant_delay(to.delay)
    reserved = settings.connections[to.connection].reserved
    if to.schedule_prefix is not None:
        # The copy of a message whose subject was chosen to be that of a schedule would replace it.
        reserved = (*reserved, to.schedule_prefix)
    return Destination(
        route=route.name,
        connection=to.connection,
        template=template,
        kind=kind,
        shown=kind.shown(to),
        mapping=mapping,
        # A route with `respond` answers by itself, so no other client should, unless that is configured.
        carries_reply=to.reply or (to.connection == source.connection and not route.respond),
        keep=kind.kept_headers(to, source.kind),
        own_ids=source.own_ids,
        reserved=reserved,
        never_replied_to=never_replied,
        when=_compiled(to.when, WHEN, route),
        weight=to.weight,
        # Taken as written: 0.1 is a tenth, which no float is.
        mirror=None if to.mirror is None else Fraction(repr(to.mirror)),
        payload=_compiled(to.payload, PAYLOAD, route),
        set_headers=tuple((name, _compile(text, HEADER, route)) for name, text in to.headers.set.items()),
        remove=tuple(to.headers.remove),
        ttl=int(to.ttl),
        breaker=to.breaker,
        hop_limit=hops.DEFAULT_LIMIT if route.hop_limit is None else route.hop_limit,
        counts_each_hop=bool(route.hop_limit),
        passed_as=_passed_as(settings, route),
        stream=kind.stream(to),
        subject_prefix=kind.subject_prefix(to, api),
        from_bucket=source.kind.is_bucket,
        last_writer=to.last_writer,
        stored_under=kind.stored_under(to, mapping.pattern),
        schedule_prefix=None if to.delay is None else to.schedule_prefix,
        delay=constant or 0.0,
        due=None if to.delay is None or constant is not None else _compile(to.delay, DELAY, route),
    )


def _numbered(destinations: Sequence[Destination], strategy: str) -> tuple[Destination, ...]:
    """Return the destinations with their numbers. Of those that a strategy chooses from, a message has one copy.

    Mirrors come last, so that they change no id of the others.
    """
    counts: Counter[tuple[str, str]] = Counter()
    numbers: dict[int, int] = {}
    for index, one in sorted(enumerate(destinations), key=lambda each: each[1].mirror is not None):
        name = one.connection, one.template
        if one.mirror is not None or strategy == "all":
            numbers[index] = counts[name]
            counts[name] += 1
        else:
            counts[name] = 1
    return tuple(
        replace(one, number=number) if (number := numbers.get(i)) else one for i, one in enumerate(destinations)
    )


def _sends(settings: Settings, plan: RoutePlan) -> tuple[tuple[str, str], ...]:
    here = servers_of(settings.connections[plan.connection])
    theirs = [(servers_of(settings.connections[one.connection]), one) for one in plan.destinations]
    return tuple(("" if here & there else min(there), one.template) for there, one in theirs)


def _passed_as(settings: Settings, route: RouteSettings) -> bytes:
    source = route.source
    servers = sorted(servers_of(settings.connections[source.connection]))
    reads = [source.kind.stream(source) or "", *source.patterns]
    return hops.name_of([settings.router.name, route.name, *servers, *reads])


def _dead_letter(
    settings: Settings,
    route: RouteSettings,
    letter: DeadLetterSettings,
    random: Callable[[int], int],
    never_replied: tuple[bytes, ...],
) -> Destination:
    to = destination_of(letter, route.source.connection)
    return replace(_destination(settings, route, to, random, never_replied), carries_reply=False, hop_limit=0)


def _retry_schedule(
    settings: Settings,
    route: RouteSettings,
    schedule: RetryScheduleSettings,
    random: Callable[[int], int],
    never_replied: tuple[bytes, ...],
) -> RetrySchedule:
    names, to = schedule.names(route.name), retries_of(schedule, route.name, route.source.connection)
    destination = _destination(settings, route, to, random, never_replied)
    destination = replace(destination, carries_reply=False, hop_limit=0)
    return RetrySchedule(destination, schedule.stream, schedule.prefix, names, schedule.after)


def _compiled(text: str | None, purpose: str, route: RouteSettings) -> Expression | None:
    return None if text is None else _compile(text, purpose, route)


def _compile(text: str, purpose: str, route: RouteSettings) -> Expression:
    return compile_for(text, purpose, from_stream=route.source.kind.is_stored)


def routes_for(plans: Sequence[RoutePlan], subject: str) -> list[RoutePlan]:
    """Return the routes that would take a message with this subject, in order."""
    return [plan for plan in plans if any(matches(one, subject) for one in plan.settings.source.patterns)]
