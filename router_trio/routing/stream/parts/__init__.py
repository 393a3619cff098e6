"""Routes with several stream sources: one for each partition, or one more for scheduled retries."""
