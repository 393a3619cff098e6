"""Compare two configurations, for a reload."""
