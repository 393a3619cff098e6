"""What of an outbox is written next, and which publish ends every link it is written to."""
