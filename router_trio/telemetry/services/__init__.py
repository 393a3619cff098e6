"""The router as a NATS service (ADR-32): what `nats service ls`, `info`, `stats` and `ping` show of it."""
