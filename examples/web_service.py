"""A web service on Trio with a router in it: what is posted is stored in a stream before the answer is given.

    python examples/web_service.py nats://127.0.0.1:4222 8080
    curl --data '{"total": 12}' http://127.0.0.1:8080/orders/7

The answer is 201 when the stream has the order, 202 when it is queued since the server is away, and 503 when it was not
accepted. Only h11 is needed for HTTP; with a framework, open the router where the framework has its lifetime, and give
`live` to what answers requests.
"""

from __future__ import annotations

import re
import signal
import sys
from functools import partial
from http import HTTPStatus

import h11
import trio

from router_trio import Live, PublishError, Router, Settings

LARGEST = 64 * 1024
"""Bytes of a body."""
WITHIN = 10.0
"""Seconds that a client has to send its request."""
_ORDER = re.compile(rb"/orders/([A-Za-z0-9]{1,20})")


def settings(server: str) -> Settings:
    """Return what a file would say. A full queue refuses, so that a client of ours is told."""
    return Settings(
        telemetry={"listen": "127.0.0.1:0"},
        connections={"main": {"servers": [server], "on_pending_full": "reject"}},
        streams=[{"name": "ORDERS", "subjects": ["orders.*"]}],
    )


async def store(live: Live, method: bytes, target: bytes, body: bytes) -> HTTPStatus:
    """Return the answer to a request: what became of the order."""
    order = _ORDER.fullmatch(target)
    if order is None:
        return HTTPStatus.NOT_FOUND
    if method != b"POST":
        return HTTPStatus.METHOD_NOT_ALLOWED
    try:
        receipt = await live.publish_with_ack(f"orders.{order[1].decode()}", body)
    except PublishError:
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.CREATED if receipt.status == "acked" else HTTPStatus.ACCEPTED


async def serve_client(live: Live, stream: trio.SocketStream) -> None:
    """Answer one request. What a client does wrong ends its connection, and nothing else."""
    http = h11.Connection(h11.SERVER)
    try:
        with trio.fail_after(WITHIN):
            request, body = await receive(http, stream)
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        if len(body) <= LARGEST:
            status = await store(live, request.method, request.target, body)
        await send(http, stream, status)
    except (h11.RemoteProtocolError, trio.BrokenResourceError, trio.TooSlowError):
        pass
    finally:
        await stream.aclose()


async def receive(http: h11.Connection, stream: trio.SocketStream) -> tuple[h11.Request, bytes]:
    """Read a request with its body; at most a little more than `LARGEST` bytes of it."""
    request: h11.Request | None = None
    body = b""
    while len(body) <= LARGEST:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            break
    if request is None:
        raise h11.RemoteProtocolError("no request")
    return request, body


async def send(http: h11.Connection, stream: trio.SocketStream, status: HTTPStatus) -> None:
    """Answer with a status, and its phrase as the body."""
    text = f"{status.phrase}\n".encode()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text))), ("Connection", "close")]
    events = (h11.Response(status_code=status, headers=headers), h11.Data(data=text), h11.EndOfMessage())
    await stream.send_all(b"".join(http.send(event) or b"" for event in events))


async def main(server: str, port: int) -> None:
    """Run the router and, within it, the web service, until a signal: the service ends first, and the router drains."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with Router(settings(server), log=True).open() as live, trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, partial(serve_client, live), port, host="127.0.0.1")
            listeners = await nursery.start(serve)
            print(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/orders/", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
