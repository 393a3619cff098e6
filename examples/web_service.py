"""Run a router inside a web service on Trio, which stores each posted order in a stream before it answers.

    python examples/web_service.py nats://127.0.0.1:4222 8080
    curl --data '{"total": 12}' http://127.0.0.1:8080/orders/7

The answer is 201 if the stream has stored the order, 202 if it is queued while the server is not connected, and 503 if
it was not accepted. This example needs only h11 for HTTP. With a framework, open the router in the lifespan of the
application, and pass `live` to the request handlers.
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
"""Maximum size of a body, in bytes."""
WITHIN = 10.0
"""Seconds within which a client must send its request."""
_ORDER = re.compile(rb"/orders/([A-Za-z0-9]{1,20})")


def settings(server: str) -> Settings:
    """Return the settings, which could also be in a file. A full queue rejects, so that the client gets 503."""
    return Settings(
        telemetry={"listen": "127.0.0.1:0"},
        connections={"main": {"servers": [server], "on_pending_full": "reject"}},
        streams=[{"name": "ORDERS", "subjects": ["orders.*"]}],
    )


async def store(live: Live, method: bytes, target: bytes, body: bytes) -> HTTPStatus:
    """Publish an order, and return the status for its request."""
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
    """Answer one request. A mistake of a client ends only its own connection."""
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
    """Read a request and its body, but not much more than `LARGEST` bytes of it."""
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
    """Send a response with a status, and its phrase as the body."""
    text = f"{status.phrase}\n".encode()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text))), ("Connection", "close")]
    events = (h11.Response(status_code=status, headers=headers), h11.Data(data=text), h11.EndOfMessage())
    await stream.send_all(b"".join(http.send(event) or b"" for event in events))


async def main(server: str, port: int) -> None:
    """Run the router with the web service inside it until a signal: the service ends first, then the router drains."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with Router(settings(server), log=True).open() as live, trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, partial(serve_client, live), port, host="127.0.0.1")
            listeners = await nursery.start(serve)
            print(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/orders/", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
