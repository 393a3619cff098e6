"""Tests of the nursery tree, on fake brokers."""
