"""Request messages from a stream, as many as there is room for."""
