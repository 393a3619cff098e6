"""Routing: from a source's messages to operations in the outboxes of the destinations.

`core/` and `stream/` are the two kinds of source, and `in_hand` in each has the messages that are received and not
settled. `schedule` decides which message is routed next, `pipeline` routes it, `delivery` follows it until all its
destinations are settled, and `outlets/` are the destinations.
"""
