"""Routing: from a source's messages to operations in the outboxes of the destinations.

`core` and `stream` are the two kinds of source; `outlet` is one destination; `delivery` follows one message until all
its destinations are settled; `handlers` calls Python functions; `inbox` is what stands between a link's reader, which
must never wait, and a route, which may.
"""
