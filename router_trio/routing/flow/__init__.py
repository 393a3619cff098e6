"""What a route waits for: its limit, and the breakers of its destinations."""
