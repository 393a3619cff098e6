"""Implementations of the language's functions, one module for each kind of value."""
