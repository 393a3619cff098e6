"""Several processes, each a complete router, under one supervisor: how they run, what they count, and their sums."""
