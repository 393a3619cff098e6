"""Implement the functions of the language: one module for each kind of value."""
