"""Let a program publish through an open router, and read its state."""
