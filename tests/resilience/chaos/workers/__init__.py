"""Chaos against `router-trio run` with several workers: the faults of the other seeds, and workers that are killed.

    python -m tests.resilience.chaos --seed 7 --workers 2

A handler fails for some messages at their first attempt, so that failures, too, cross from worker to supervisor.
`process` keeps the command running, `run` does what a seed draws, and judges what the streams, the pages and the logs
have. Workers share a durable or a queue group, so no order is promised.
"""
