"""Find where a consumer of a source stands in a copy of it, so that it can continue there.

The server reports how far a consumer has come, but not which messages above its ack floor are acked. So a position is
the first copy of any message above the floor: no unacked message is skipped, and the number of repeats is computed.
"""
