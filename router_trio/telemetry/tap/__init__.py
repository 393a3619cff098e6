"""Taps: the messages of a route, shown to those who run `router-trio tap`, with what became of each."""
