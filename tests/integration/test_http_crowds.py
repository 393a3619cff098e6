"""The HTTP side with too many clients: probes are answered, others find room, scrapes are shared, the loop runs on."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
import trio

from router_trio.states import PAUSED
from router_trio.telemetry.http import application, event_stream, server
from router_trio.telemetry.metrics.metric import Form
from router_trio.telemetry.metrics.page import MetricsPage
from router_trio.telemetry.pieces import Parts, Pieces
from tests.integration.pages import Address, get, make_page_large, read_all, served, split
from tests.integration.test_http_attacks import ELSEWHERE, connect, held, probe
from tests.support.telemetry_views import View

# --- number ---


@pytest.mark.parametrize("sources", [["127.0.0.1"], ["127.0.0.1", ELSEWHERE, "127.0.0.3", "127.0.0.4"]])
@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"GET /he",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx",
        b"nonsense\r\n\r\n",
    ],
    ids=["silent", "half a request", "idle", "watchers", "half a body", "nonsense"],
)
async def test_probes_are_answered_when_all_connections_are_taken(
    view: View, request_: bytes, sources: list[str]
) -> None:
    async with served(view) as address, held(address, 300 // len(sources), request_, *sources):
        for source in ("127.0.0.1", ELSEWHERE, "127.0.0.9"):
            for path in ("/healthz", "/readyz"):
                assert await probe(address, path, source) == 200


@pytest.mark.parametrize("sources", [["127.0.0.1"], ["127.0.0.1", ELSEWHERE, "127.0.0.3"]])
async def test_probes_are_answered_when_all_answers_are_stuck(view: View, sources: list[str]) -> None:
    """As many as may scrape, and none of them reads its answer."""
    make_page_large(view)
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with served(view) as address, held(address, server.MAX_CONNECTIONS_PER_PEER, b"", *sources) as streams:
        most = min(server.MAX_REQUESTS_PER_PEER * len(sources), server.MAX_REQUESTS)
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(_send, stream, request)
        answers = []
        with trio.fail_after(20):
            for stream in streams:
                with suppress(trio.BrokenResourceError):
                    answers.append(await stream.receive_some(12))
        assert 0 < answers.count(b"HTTP/1.1 200") <= most
        assert len(sources) > 1 or answers.count(b"HTTP/1.1 503") == len(streams) - most
        for source in ("127.0.0.1", "127.0.0.9"):
            for path in ("/healthz", "/readyz"):
                assert await probe(address, path, source) == 200


async def test_probes_are_answered_when_those_of_others_are_stuck(view: View) -> None:
    """Each requests thousands of probe pages ahead, and reads none."""
    request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000
    for route in view.routes:
        route.enter(PAUSED, "waits " * 2000)
    async with served(view) as address, held(address, 300, b"", "127.0.0.1", ELSEWHERE) as streams:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 1
            for stream in streams:
                nursery.start_soon(_send, stream, request)
        for source in ("127.0.0.1", "127.0.0.9"):
            for path, code in (("/healthz", 200), ("/readyz", 503)):
                assert await probe(address, path, source) == code


async def _send(stream: trio.SocketStream, request: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.send_all(request)


async def test_one_peer_leaves_room_for_others(view: View) -> None:
    async with served(view) as address, held(address, 400, b"") as streams:
        assert await probe(address) == 200
        still = [stream for stream in streams if not await _ended(stream)]
        assert len(still) <= server.MAX_CONNECTIONS_PER_PEER < server.MAX_CONNECTIONS
        async with await connect(address, ELSEWHERE) as other:
            await other.send_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert split(await read_all(other))[0] == 200


async def _ended(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.001):
        try:
            return await stream.receive_some() == b""
        except trio.BrokenResourceError:
            return True
    return False


async def test_a_thousand_watchers_are_refused_and_affect_no_other_client(view: View) -> None:
    codes: list[int] = []

    async def watch(address: Address, over: trio.Event) -> None:
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await stream.receive_some(12)
            codes.append(int(head.split()[1]) if head else 0)
            if b" 200" in head:
                await over.wait()

    async with served(view) as address, trio.open_nursery() as nursery:
        over = trio.Event()
        for _ in range(1000):
            nursery.start_soon(watch, address, over)
        with trio.fail_after(30):
            while len(codes) < 1000:
                assert (await get(address, "/healthz"))[0] == 200
        assert await probe(address) == 200
        assert codes.count(200) == event_stream.MAX_CLIENTS_PER_PEER
        assert set(codes) == {200, 503}
        over.set()


async def test_watchers_of_one_address_leave_places_for_others(view: View) -> None:
    request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with served(view) as address, held(address, event_stream.MAX_CLIENTS_PER_PEER, request) as streams:
        for stream in streams:
            assert b" 200 " in await stream.receive_some()
        code, headers, body = await get(address, "/events")
        assert (code, headers["retry-after"]) == (503, "5")
        assert b"of this address" in body
        async with await connect(address, ELSEWHERE) as other:
            await other.send_all(request)
            assert b" 200 " in await other.receive_some()


# --- scrapes ---


async def test_concurrent_scrapes_share_one_page(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = 0
    pieces = MetricsPage.pieces

    def counted(page: MetricsPage, form: Form) -> Pieces[Parts]:
        nonlocal rendered
        rendered += 1
        return pieces(page, form)

    monkeypatch.setattr(MetricsPage, "pieces", counted)
    codes = []

    async def scrape(stream: trio.SocketStream) -> None:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        codes.append(split(await read_all(stream))[0])

    async with served(view) as address, held(address, 100, b"") as streams, trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(scrape, stream)
    assert codes == [200] * 100
    assert rendered <= 5


async def test_a_scrape_is_never_older_than_its_request(view: View) -> None:
    async with served(view) as address, trio.open_nursery() as nursery:

        async def scrape() -> None:
            for _ in range(5):
                view.routes[0].received += 1
                asked_at = view.routes[0].received
                body = (await get(address, "/metrics"))[2].decode()
                [line] = [line for line in body.splitlines() if line.startswith("router_messages_received_total{")]
                assert float(line.split()[-1]) >= asked_at

        for _ in range(10):
            nursery.start_soon(scrape)


async def test_the_loop_continues_under_scrapes(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty clients scrape without a pause: other work is late by one page, not by forty."""

    def slow(_: MetricsPage, form: Form) -> Pieces[Parts]:
        time.sleep(0.02)  # blocks the loop, as a page of many routes does
        yield
        return [b""]

    monkeypatch.setattr(MetricsPage, "pieces", slow)
    late = []
    async with served(view) as address, held(address, 40, b"") as streams, trio.open_nursery() as nursery:

        async def scrape(stream: trio.SocketStream) -> None:
            while True:
                await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await stream.receive_some()

        for stream in streams:
            nursery.start_soon(scrape, stream)
        for _ in range(30):
            due = time.perf_counter() + 0.01
            await trio.sleep(0.01)
            late.append(time.perf_counter() - due)
        nursery.cancel_scope.cancel()
    # Forty pages in one turn of the loop would be 0.8 s, many times over.
    assert sum(late) < 2.0


async def test_the_loop_continues_under_pipelined_requests(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred connections with thousands of requests each: one is answered in each turn of the loop."""

    def slow(_: View) -> tuple[int, dict[str, object]]:
        time.sleep(0.005)  # blocks the loop, as many routes do
        return 200, {}

    monkeypatch.setattr(application, "health", slow)
    late = []
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    async with served(view) as address, held(address, 100, request):
        for _ in range(30):
            due = time.perf_counter() + 0.01
            await trio.sleep(0.01)
            late.append(time.perf_counter() - due)
    assert sorted(late)[15] < 0.1, sorted(late)
