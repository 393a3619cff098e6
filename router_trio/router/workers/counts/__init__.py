"""What a worker counts, where it outlives the worker, and how counts are added."""
