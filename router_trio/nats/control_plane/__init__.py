"""The requests that a link makes of the JetStream API: by nats-py, in an asyncio loop of its own."""
