"""Routes that keep what failed: for another attempt from memory, or as dead letters."""
