"""Keep what a connection has accepted and not settled: queue, retries, capacity, fates, ledger. Pure."""
