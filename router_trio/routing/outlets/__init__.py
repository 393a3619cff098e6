"""The destinations of a route at work: subjects, headers, and frames into an outbox."""
