"""Benchmarks against peers: `python -m tests.performance.benchmarks [--quick] [--write] [WORKLOAD ...]`.

A rate alone describes the machine more than the router. So every figure here is taken in the same run as those of its
peers, in turns (A B C A B C ...), and reported as a median with its spread, a ratio, and the processor time per
message. The load comes from a process of its own that shares no code with any contestant.
"""
