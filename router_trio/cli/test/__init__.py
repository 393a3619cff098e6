"""`router-trio test`: the examples of a configuration, run on fake brokers."""
