"""The incidents of the drill: each has a configuration, a healthy start, something that goes wrong, and a cause."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import trio

from tests.support.command import RunningCommand, environment
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, RawNatsError, connect
from tests.support.servers import NatsServer

COMMAND_WITHIN = 60.0

HEAD = """
[router]
name = "orders-router"
shutdown_timeout = "2s"
[telemetry]
listen = "{listen}"
[connections.main]
servers = ["{url}"]
user = "router"
password = "router"
reconnect_delay = "100ms"
max_reconnect_delay = "500ms"
max_pending_operations = 50
"""

STORED = """
[[routes]]
name = "orders"
from = { stream = "ORDERS", durable = "router", filter = "orders.*" }
to = [ { subject = "copies.{{wildcard(1)}}", jetstream = true } ]
"""

USERS = """
authorization {{ users: [
  {{ user: admin, password: admin }}
  {{ user: router, password: router{permissions} }}
] }}
"""

HANDLER = """
import trio

async def lookup(message):
    if b"slow" in message.payload:
        await trio.sleep_forever()  # the service that it asks does not answer
    return message
"""


@dataclass
class Stage:
    """The place of one incident: a server with a client, a router as a process, and its files."""

    folder: Path
    listen: str
    server: NatsServer
    client: RawClient
    router: RunningCommand

    @property
    def streams(self) -> JetStream:
        """JetStream of the server, for an administrator."""
        return JetStream(self.client)

    @property
    def config(self) -> Path:
        """The configuration of the router."""
        return self.folder / "router.toml"

    def change(self, before: str, after: str) -> None:
        """Replace text in the configuration."""
        text = self.config.read_text()
        assert before in text, before
        self.config.write_text(text.replace(before, after))

    async def command(self, *arguments: str) -> None:
        """Run a `router-trio` command, as a colleague would."""
        command = [sys.executable, "-m", "router_trio", *arguments]
        with trio.fail_after(COMMAND_WITHIN):
            await trio.run_process(command, cwd=self.folder, env=environment(), capture_stdout=True)


Do = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Incident:
    """An incident: `goes_wrong` after some healthy seconds, and `alert` fires.

    `cause` is a pattern of the output of the commands of the runbook; `answer` is what happened, in one sentence.
    `labels` are those of the alert besides `job` and `instance`. `every` is the time between two messages in seconds,
    `body` is their payload.
    """

    name: str
    alert: str
    answer: str
    cause: str
    goes_wrong: Do
    routes: str = STORED
    labels: Mapping[str, str] = field(default_factory=lambda: {"connection": "main", "route": "orders"})
    every: float = 0.05
    body: bytes = b'{"id": 7, "customer": {"id": 3}}'
    modules: Mapping[str, str] = field(default_factory=dict)


async def _customers_without_id(stage: Stage) -> None:
    for number in range(12):
        await stage.streams.publish(f"orders.{number}", b'{"id": 7, "customer": {"name": "Ann"}}')


async def _pause(stage: Stage) -> None:
    await stage.command("pause", "router.toml", "orders", "--for", "2h")
    await stage.router.has_logged("ROUTE_CONSUMER_PAUSED")


async def _reload_a_mistake(stage: Stage) -> None:
    stage.change("copies.{{wildcard(1)}}", "copies.{{wildcard(2)}}")
    stage.router.send(signal.SIGHUP)
    await stage.router.has_logged("ROUTER_RELOAD_REFUSED")


async def _slow_service(stage: Stage) -> None:
    await stage.streams.publish("orders.1", b"slow")


async def _server_killed(stage: Stage) -> None:
    await stage.server.kill()


async def _full(stage: Stage) -> None:
    await stage.streams.edit_stream("COPIES", discard="new", max_msgs=10)


async def _acks_forbidden(stage: Stage) -> None:
    denied = ', permissions: { publish: { deny: ["$JS.ACK.>"] } }'
    await stage.server.reload(USERS.format(permissions=denied))


async def _no_stream_for_letters(stage: Stage) -> None:
    await stage.streams.delete_stream("DEAD")
    await _customers_without_id(stage)


async def _rate_of_the_partner(stage: Stage) -> None:
    stage.change('name = "orders"', 'name = "orders"\nlimit = { rate = "2/s" }')
    stage.router.send(signal.SIGHUP)
    await stage.router.has_logged("ROUTER_RELOADED")


LETTERS = """
[[routes]]
name = "orders"
from = { stream = "ORDERS", durable = "router", filter = "orders.*" }
retry = { initial = "100ms", max = "1s", attempts = 2 }
dead_letter = { subject = "dead.{{wildcard(1)}}" }
to = [ { subject = "copies.{{wildcard(1)}}", payload = 'string(body.customer.id)', jetstream = true } ]
"""

INCIDENTS = (
    Incident(
        "dead letters",
        "RouterMessagesDeadLettered",
        "Some customers have no id, so the payload of the copy can't be made.",
        r"there is no key 'id'|no such key: id|no key .?id",
        _customers_without_id,
        routes=LETTERS,
        labels={"connection": "main", "route": "orders", "fate": "dead_lettered"},
    ),
    Incident(
        "lag",
        "RouterRouteBehind",
        "Somebody set a limit of 2 messages a second, and ten times as many arrive.",
        r'"rate": "2/s"',
        _rate_of_the_partner,
    ),
    Incident(
        "lost messages",
        "RouterMessagesDropped",
        "The server is down, and the queue of the connection holds 50 messages.",
        r"(?s)\"state\": \"reconnecting\".*\"dropped\": [1-9]",
        _server_killed,
        routes="""
[connections.source]
servers = ["{source}"]
[[routes]]
name = "orders"
from = { connection = "source", subject = "orders.*" }
to = [ { connection = "main", subject = "copies.{{wildcard(1)}}" } ]
""",
        labels={"connection": "main", "reason": "queue_full"},
    ),
    Incident(
        "stalled",
        "RouterRouteStalled",
        "The handler waits for a service that does not answer, without a timeout.",
        r"its handler has not returned for \d+ s",
        _slow_service,
        routes=STORED.replace('name = "orders"', 'name = "orders"\nhandler = "lookups:lookup"'),
        modules={"lookups": HANDLER},
    ),
    Incident(
        "refused reload",
        "RouterReloadRefused",
        "The new file has a mapping to a wildcard that the subject does not have.",
        r"routes\[0\]\.to\[0\]\.subject: ",
        _reload_a_mistake,
        labels={},
    ),
    Incident(
        "paused",
        "RouterRouteNotRunning",
        "A colleague paused the route for two hours.",
        r"is paused on the server until .* by ",
        _pause,
    ),
    Incident(
        "server away",
        "RouterConnectionDown",
        "The server was killed: nothing listens on its address.",
        r"(?i)connection refused",
        _server_killed,
        labels={"connection": "main"},
    ),
    Incident(
        "full stream",
        "RouterNotReady",
        "The stream of the copies is full, and discards new messages.",
        r"maximum messages exceeded|stream_full",
        _full,
        labels={},
    ),
    Incident(
        "acks refused",
        "RouterAckFailures",
        "Somebody denied the router's user to publish to $JS.ACK.>.",
        r"Permissions Violation for Publish to .{1,4}\$JS\.ACK\.ORDERS\.router",
        _acks_forbidden,
        labels={"connection": "main", "operation": "ack"},
    ),
    Incident(
        "dead letters not stored",
        "RouterDeadLettersNotStored",
        "The stream of the dead letters was deleted.",
        r"no stream takes|no_responders",
        _no_stream_for_letters,
        routes=LETTERS,
        labels={"connection": "main", "route": "orders", "reason": "dead_letter"},
    ),
)


async def traffic(incident: Incident, url: str) -> None:
    """Publish orders until cancelled or until the server is gone."""
    with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError, RawNatsError):
        async with connect(url, user="admin", password="admin") as client:
            for number in count():
                await client.publish(f"orders.{number % 10}", incident.body)
                await trio.sleep(incident.every)
