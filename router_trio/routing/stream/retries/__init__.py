"""Retries by message schedules: failed messages wait in another stream, and are read from there when they are due."""
