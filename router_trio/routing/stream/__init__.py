"""Routes from a JetStream stream: what is in hand, in what order, and how more is asked for."""
