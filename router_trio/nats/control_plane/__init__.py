"""The requests that a link sends to the JetStream API: by nats-py, in an asyncio loop of its own."""
