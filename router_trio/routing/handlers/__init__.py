"""Python handlers: import, call, and what becomes of their answers and errors."""
