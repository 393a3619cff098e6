"""Decide, purely and synchronously, which destinations get a message, what a copy carries, and when to retry."""
