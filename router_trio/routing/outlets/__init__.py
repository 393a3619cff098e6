"""Send to the destinations of a route: map subjects, set headers, and offer frames to an outbox."""
