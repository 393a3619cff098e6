"""What routes decide by content, pure and synchronous: which destinations get a message, and what a copy carries."""
