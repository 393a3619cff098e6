"""JetStream on a link: what is asked of its API, consumers, and PubAcks."""
