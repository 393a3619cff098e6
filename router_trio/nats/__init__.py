"""The real links: the handshake, the wire, and the requests on it."""
