"""The NATS protocol on the wire: frames, header blocks, and the headers that steer a server. Pure."""
