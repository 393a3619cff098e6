"""Several processes, each a whole router, under one supervisor: their lives, what they count, and their sums."""
