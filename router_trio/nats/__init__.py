"""The real links: a handshake and a wire of our own, and nats-py for the JetStream API."""
