"""The real links: nats-py for the handshake and the JetStream API, a wire of our own for everything else."""
