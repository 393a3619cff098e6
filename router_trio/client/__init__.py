"""What a program has of an open router: to publish, and to read its state."""
