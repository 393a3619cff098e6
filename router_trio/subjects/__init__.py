"""Subjects: patterns with wildcards, and mappings from one subject to another. Pure."""
