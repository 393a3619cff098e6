"""Benchmarks against peers: `python -m tests.performance.benchmarks [--quick] [--write] [WORKLOAD ...]`.

A rate alone says more about the machine than about the router. So every figure here is taken in the same run as those
of its peers, in turns (A B C A B C ...), and told as a median with its spread, a ratio, and the processor time a
message costs. The load comes from a process of its own that shares no code with any contestant.
"""
