"""The counts of workers: where they outlive a worker, and how they are added up."""
