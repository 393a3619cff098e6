"""Spans of messages and of outages, and how they are exported."""
