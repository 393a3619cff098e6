"""Run a router inside a FastAPI application, which stores each posted order in a stream before it answers.

    NATS_URL=nats://127.0.0.1:4222 uvicorn --app-dir examples fastapi_orders:app    # examples/fastapi_orders.py
    curl --json '{"country": "DE", "net": 100}' http://127.0.0.1:8000/orders/7

The answer is 201 if the stream has stored the order, 202 if it is queued while the server is not connected, and 503 if
it was not accepted. The router copies each order to another stream, with the gross total. Requests and the handler run
on one event loop, so both use what the lifespan opens: here a table of tax rates, elsewhere a pool of asyncpg.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel

from router_trio import Message, PublishError, Reject, Router, Settings, aio


class Order(BaseModel):
    """The body of a request."""

    country: str
    net: float


class TaxRates:
    """Tax rates by country, which an asyncio library would query."""

    async def of(self, country: str) -> float | None:
        """Return the rate of a country in per cent; None if it is unknown."""
        await asyncio.sleep(0)
        return {"DE": 19.0, "FR": 20.0}.get(country)


router = Router(
    Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": [os.environ["NATS_URL"]], "on_pending_full": "reject"}},
        streams=[{"name": "ORDERS", "subjects": ["orders.*"]}, {"name": "INVOICES", "subjects": ["invoices.*"]}],
    ),
    log=True,
)
rates = TaxRates()


@router.route(
    stream="ORDERS",
    durable="invoices",
    filter="orders.*",
    to={"subject": "invoices.{{wildcard(1)}}", "jetstream": True},
    loop="asyncio",
)
async def add_tax(message: Message) -> Message:
    """Add the gross total to an order."""
    order = json.loads(message.payload)
    rate = await rates.of(order["country"])
    if rate is None:
        raise Reject("unknown country")
    return message.replace(payload=json.dumps(order | {"gross": order["net"] * (1 + rate / 100)}).encode())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the router while the application runs. At the end, the requests end first, then the router drains."""
    async with aio.open(router) as live:
        app.state.live = live
        yield


def running_router(request: Request) -> aio.Live:
    """Return the router for a request."""
    live: aio.Live = request.app.state.live
    return live


Live = Annotated[aio.Live, Depends(running_router)]
app = FastAPI(lifespan=lifespan)


@app.post("/orders/{number}")
async def store(number: int, order: Order, live: Live) -> Response:
    """Publish an order."""
    try:
        receipt = await live.publish_with_ack(f"orders.{number}", order.model_dump_json().encode())
    except PublishError:
        return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)
    return Response(status_code=HTTPStatus.CREATED if receipt.status == "acked" else HTTPStatus.ACCEPTED)


@app.get("/ready")
async def ready(live: Live) -> Response:
    """Return 200 while the router is connected."""
    connected = live.fatal is None and live.connections["main"].connected
    return Response(status_code=HTTPStatus.OK if connected else HTTPStatus.SERVICE_UNAVAILABLE)
