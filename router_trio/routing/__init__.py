"""Routing: from a source's messages to operations in the outboxes of the destinations.

`core/` and `stream/` are the two kinds of source. `in_hand` in each says where a message is that was received and not
settled, `schedule` which of them is routed next, `pipeline` what happens to each, `delivery` follows one until all its
destinations are settled, and `outlets/` are the destinations.
"""
