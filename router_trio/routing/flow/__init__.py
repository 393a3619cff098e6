"""Hold back the messages of a route: by its rate limit, and by the circuit breakers of its destinations."""
