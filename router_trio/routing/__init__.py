"""Routing: from a source's messages to operations in the outboxes of the destinations.

`core_route` and `stream/` are the two kinds of source; `pipeline` is what happens to each message, `outlet` is one
destination; `delivery` follows one message until all its destinations are settled; `handlers` calls Python functions;
`intake_queue` is what stands between a link's reader, which must never wait, and a route, which may.
"""
