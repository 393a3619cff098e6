"""The NATS wire protocol: frames, header blocks, and the headers that control a server. Pure."""
