"""Compare the source stream of a route with the streams of its destinations, message by message.

A copy is found by its `Nats-Msg-Id`, which is computed from the message again. Everything is read from the leaders of
the streams, and nothing is changed, except by a repair.
"""
