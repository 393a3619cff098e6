"""Routes that decide by the content of messages, or change what they send."""
