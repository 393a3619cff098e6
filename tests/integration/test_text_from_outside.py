"""No command lets subjects, headers, payloads or errors act upon a terminal, from any peer."""

from __future__ import annotations

import ast
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from threading import Thread
from typing import Any

import pytest
import trio

import router_trio.cli
from router_trio import Router, Settings
from router_trio.cli.command_line import COMMANDS
from tests.support.command import command, in_process, over_its_links
from tests.support.eventually import eventually
from tests.support.impostors import impostor, info, saying
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer

MARK = "MARK"
HOSTILE = (
    "\x1b]0;t\x07\x1b[2J\x1b[31mMARK\x1b[0m\x9b31m\x90q\x85"
    "\u202egnp\u2066\u2069\u200e\u061c\u200b\u200d\u2060\ufeff\x7f\u2028\b\x00"
)
"""Titles, colours, C1, marks that turn the direction, characters of no width. NUL ends no text either."""

IN_SUBJECT = "".join(one for one in HOSTILE if one not in "\0\x7f" and not one.isspace())
"""Without spaces, and without DEL, with which nats-server finds no subject."""
ROUTE = "copy"
CONFIG = """
[telemetry]
listen = ""
log_format = "console"
[connections.main]
servers = ["{url}"]
reconnect_attempts = 1
reconnect_delay = "10ms"
on_reconnect_exhausted = "stop"
connect_timeout = "2s"
[[routes]]
name = "copy"
from = {{ stream = "SOURCE", durable = "router", filter = "source.*" }}
retry = {{ attempts = 1 }}
dead_letter = {{ subject = "dead.all" }}
[[routes.to]]
subject = "sink.all"
jetstream = true
payload = 'body.bad ? string(int(body.text)) : body.text'
[[routes]]
name = "later"
from = {{ stream = "SOURCE", durable = "later", filter = "source.*" }}
retry = {{ initial = "1h", max = "1h", schedule = {{ stream = "RETRY", prefix = "retry", after = "1s" }} }}
to = [ {{ subject = "sink.later", jetstream = true, payload = 'string(int(body.text))' }} ]
"""

# Each command with a peer, and arguments with which it asks a server.
WITH_SERVER = {
    "run": ("router.toml",),
    "check": ("router.toml", "--online"),
    "diff": ("router.toml", "router.toml", "--last", "9", ROUTE),
    "trace": ("router.toml", "source.1"),
    "audit": ("router.toml", ROUTE),
    "position": ("router.toml", ROUTE, "--consumer", "other"),
    "find": ("router.toml", "source.1"),
    "partitions": ("partitions.toml", ROUTE),
    "pause": ("router.toml", ROUTE, "--for", "1h"),
    "resume": ("router.toml", ROUTE),
    "replay": ("router.toml", ROUTE, "--from", "1"),
    "dead-letters": ("router.toml", ROUTE, "list"),
    "schedules": ("router.toml", "later", "list"),
}
WITH_PAGES = {"top": ("URL", "--once"), "tap": ("URL", ROUTE, "--limit", "1", "--payload")}
ALONE = {"init", "demo", "explain", "test", "permissions", "contract", "schema", "completion"}
"""Commands that print nothing from a peer."""

HARMLESS = set("\n")


def is_plain(done: CompletedProcess[str]) -> bool:
    """Check that only what can be seen was printed, and return whether the hostile text was among it."""
    for text in (done.stdout, done.stderr):
        assert {one for one in text if not one.isprintable()} <= HARMLESS, ascii(text)
    return MARK in done.stdout + done.stderr


def configure(folder: Path, url: str) -> None:
    text = CONFIG.format(url=url)
    (folder / "router.toml").write_text(text)
    partitioned = text.split("[[routes]]")
    (folder / "partitions.toml").write_text(
        "[[routes]]".join(partitioned[:2]).replace('filter = "source.*"', 'filter = "source.*", partitions = 2')
    )


def test_every_command_is_fed_or_has_no_peer() -> None:
    fed = [*WITH_SERVER, *WITH_PAGES, *ALONE]
    assert sorted(fed) == sorted(COMMANDS)


def test_only_one_module_of_the_commands_prints() -> None:
    folder = Path(router_trio.cli.__file__).parent
    printing = set()
    for module in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            is_write = isinstance(node, ast.Attribute) and node.attr in ("write", "writelines")
            if is_print or (is_write and "sys.std" in ast.unparse(node)):
                printing.add(str(module.relative_to(folder)))
    assert printing == {"output.py"}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SERVER)
@pytest.mark.parametrize("where", ["refusal", "info"])
async def test_a_hostile_server(name: str, where: str, tmp_path: Path) -> None:
    """A server that refuses the login, and one that is called by a hostile name and closes."""
    if where == "refusal":
        refusal = HOSTILE.replace("\0", "").replace("'", "")
        play = saying(info(), b"-ERR '%b'\r\n" % refusal.encode(), then_close=True)
    else:
        named = {"server_name": HOSTILE, "cluster": HOSTILE, "domain": HOSTILE, "version": f"2.15.1{HOSTILE}"}
        play = saying(info(**named), then_close=True)
    async with impostor(play) as server:
        configure(tmp_path, server.url)
        done = await trio.to_thread.run_sync(partial(command, name, *WITH_SERVER[name], cwd=tmp_path))
    assert done.returncode != 0
    assert is_plain(done) or where == "info"


@asynccontextmanager
async def streams(server: NatsServer, folder: Path) -> AsyncIterator[JetStream]:
    """Have hostile messages routed, given up, lost and scheduled."""
    configure(folder, server.url)
    names = {"SOURCE": ["source.*"], "SINK": ["sink.>"], "DEAD": ["dead.*"], "RETRY": ["retry.>"]}
    async with connect(server.url) as client:
        stream = JetStream(client)
        for name, subjects in names.items():
            more = {"allow_msg_schedules": True} if name == "RETRY" else {}
            await stream.create_stream(name, subjects, **more)
        hostile = [(f"X-Hostile{HOSTILE[5:12]}", IN_SUBJECT), ("X-Text", IN_SUBJECT)]
        for bad in ("false", "true"):
            body = json.dumps({"text": HOSTILE}).replace("{", f'{{"bad": {bad}, ', 1)
            await stream.publish(f"source.{IN_SUBJECT}", body.encode(), hostile)

        async def done() -> bool:
            copied = await stream.consumer_info("SOURCE", "router")
            return bool(copied["num_pending"] == copied["num_ack_pending"] == 0)

        async with Router(Settings.load(folder / "router.toml"), log=False).open():
            await trio.sleep(0.2)
            await eventually(done)
        forged = [("Nats-Schedule", "@at 2036-01-01T00:00:00Z"), ("Nats-Schedule-Target", "retry.x")]
        await stream.publish(f"retry.later.{IN_SUBJECT}", b"{}", [*forged, ("X", IN_SUBJECT)])
        sink = await stream.stream_messages("SINK")
        copies = [one.sequence for one in sink if one.subject.startswith("sink.")]
        for sequence in copies:
            await stream.api("STREAM.MSG.DELETE.SINK", {"seq": sequence})
        yield stream
        for name in names:
            await stream.delete_stream(name)


SHOWN: dict[str, tuple[tuple[str, ...], ...]] = {
    "audit": (
        ("router.toml", ROUTE),
        ("router.toml", ROUTE, "--repair", "--dry-run"),
        ("router.toml", ROUTE, "--json"),
    ),
    "find": (("router.toml", f"source.{IN_SUBJECT}"),),
    "diff": (("router.toml", "other.toml", "--last", "9", ROUTE),),
    "replay": (("router.toml", ROUTE, "--from", "1", "--where", 'int(headers["X-Text"]) > 1'),),
    "dead-letters": (
        ("router.toml", ROUTE, "list"),
        ("router.toml", ROUTE, "list", "--json"),
        ("router.toml", ROUTE, "show", "1"),
        ("router.toml", ROUTE, "show", "1", "--json"),
        ("router.toml", ROUTE, "redrive", "--dry-run"),
        ("router.toml", ROUTE, "redrive"),
    ),
    "schedules": (("router.toml", "later", "list"), ("router.toml", "later", "list", "--json")),
    "pause": (("router.toml", ROUTE, "--for", "1h"),),
    "resume": (("router.toml", ROUTE),),
    "position": (("router.toml", ROUTE, "--consumer", "later"),),
    "trace": (("router.toml", f"source.{IN_SUBJECT}"),),
    "check": (("router.toml", "--online"),),
}
SILENT = {"pause", "resume", "position", "check", "replay", "trace", "schedules"}
"""Commands that may print nothing that a client wrote. No route schedules what can't be printed."""


@pytest.mark.slow
@needs_server(2, 12, lacks="message schedules")
async def test_hostile_messages(tmp_path: Path, server: NatsServer) -> None:
    async with streams(server, tmp_path):
        text = (tmp_path / "router.toml").read_text()
        (tmp_path / "other.toml").write_text(text.replace('"sink.all"', '"sink.new"'))
        for name, runs in SHOWN.items():
            for arguments in runs:
                done = await over_its_links(name, *arguments, cwd=tmp_path)
                assert is_plain(done) or name in SILENT, (name, arguments, done)


def hostile(value: Any) -> Any:
    """Return JSON in which every text and name but times is hostile."""
    if isinstance(value, str):
        return value if value[:4] == "2026" else value + HOSTILE + "\n"
    if isinstance(value, list):
        return [hostile(one) for one in value]
    if isinstance(value, dict):
        return {name: hostile(one) for name, one in value.items()}
    return value


LEDGER = {"received": 2, "in_hand": 0, "settled": {"routed": 1, "lost": 1}}
FAILURE = {"at": "2026-11-29T12:00:00Z", "reason": "r", "detail": "d", "subject": "s", "sequence": 7, "place": "p"}
RUNNING = {
    "state": "running",
    "failed": 1,
    "last_failure": FAILURE,
    "retrying": {"count": 1, "oldest_seconds": 1.0},
    "ledger": LEDGER,
}
CONNECTED = {"state": "connected", "server": "nats://h:4222", "pending": 0, "in_flight": 0, "last_error": "e"}
STATUS = {
    "name": "n",
    "version": "v",
    "uptime_seconds": 1.0,
    "connections": {f"main{HOSTILE}": CONNECTED},
    "routes": {f"copy{HOSTILE}": RUNNING},
    "ledger": {f"main{HOSTILE}": {"accepted": 1, "pending": 0, "in_flight": 0, "settled": {"acked": 1}}},
}
UNREADY = {"reasons": [{"connection": "main", "reason": "x"}, {"route": "copy", "reason": "y"}]}
TAPPED = {
    "messages": [
        {
            "at": "2026-11-29T12:00:00.000Z",
            "fate": "lost",
            "subject": "s",
            "stream": "S",
            "sequence": 1,
            "deliveries": 2,
            "size": 1,
            "ms": 1.0,
            "reason": "r",
            "detail": "d",
            "to": [{"destination": "to", "fate": "failed", "reason": "r"}],
            "headers": [["a", "b"]],
            "payload": "p",
        }
    ],
    "left_out": {f"lost{HOSTILE}": 1},
    "error": "e",
    "shown": 1,
    "not_matching": 1,
    "failed": 1,
    "waiting": 0,
}


@contextmanager
def hostile_pages(*, refuses: bool) -> Iterator[str]:
    """Serve pages like those of a router, in which every text is hostile; with `refuses`, only errors."""
    pages = {"/status": STATUS, "/readyz": UNREADY, "/tap": {"tap": "1"}}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found: Any = hostile(pages.get(self.path, TAPPED)) if self.path != "/tap" else pages["/tap"]
            code = 503 if self.path == "/readyz" else 200
            if refuses:
                code, found = 409, {"error": HOSTILE + "\nforged"}
            body = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("more", [(), ("--json",)])
@pytest.mark.parametrize("name", WITH_PAGES)
def test_hostile_pages(name: str, more: tuple[str, ...], refuses: bool, tmp_path: Path) -> None:
    with hostile_pages(refuses=refuses) as url:
        arguments = [url if one == "URL" else one for one in WITH_PAGES[name]]
        done = in_process(name, *arguments, *more, cwd=tmp_path)
    assert is_plain(done)
    assert "\nforged" not in done.stderr


def test_painted_lines_have_only_the_colours_of_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paints: Callable[[Any], bool] = lambda stream: True  # noqa: E731
    for module in ("tap", "top.command"):
        monkeypatch.setattr(f"router_trio.cli.{module}.shows_colours", paints)
    for name, arguments in WITH_PAGES.items():
        with hostile_pages(refuses=False) as url:
            done = in_process(name, *(url if one == "URL" else one for one in arguments), cwd=tmp_path)
        text = done.stdout
        for code in ("0", "1", "2", "31", "32", "33"):
            text = text.replace(f"\x1b[{code}m", "")
        assert text != done.stdout
        # All of them are balanced: none is from the pages.
        assert done.stdout.count("\x1b[0m") * 2 == done.stdout.count("\x1b[")
        assert "\\x1b[31mMARK" in text
        assert {one for one in text if not one.isprintable()} <= HARMLESS
