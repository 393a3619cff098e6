"""The table of metrics, and the pages that a scrape gets."""
