"""Answers of routes to whoever asked."""
