"""Routes that decide by the content of messages, or change the messages."""
