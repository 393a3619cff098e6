"""The durable of a route from a stream: its configuration, its lead, and deliveries that a lost link missed."""
