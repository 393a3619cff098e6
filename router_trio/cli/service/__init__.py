"""Notify the process manager of `router-trio run`, and handle the signals that it sends."""
