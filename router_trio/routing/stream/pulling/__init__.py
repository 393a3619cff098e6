"""Asking a stream for messages, as many as there is room for."""
