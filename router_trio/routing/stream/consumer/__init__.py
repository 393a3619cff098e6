"""The durable of a route from a stream: what it is to be, who has its lead, and what it had not delivered."""
