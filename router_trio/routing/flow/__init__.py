"""Hold a route back: by its limit, and by the breakers of its destinations."""
