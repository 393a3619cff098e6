"""Routes from a JetStream stream: messages in hand, their order, and the requests for more."""
