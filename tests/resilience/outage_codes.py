"""The codes of an outage in the log."""

from __future__ import annotations

OUTAGE = ("NATS_CONNECTION_LOST", "NATS_RECONNECT_ATTEMPT", "NATS_CONNECTION_RESTORED")
KEPT = ("NATS_RETRY_PENDING", "NATS_RETRY_COMPLETE")
