"""Simulation of the complete router under one seed: drawn configuration, load and faults, on fake brokers, in virtual
time.

`draw` turns a seed into a schedule, which is data; `simulation` executes it; `oracles` check every step against the
promises; `run.simulate` does all of it, bit for bit the same each time; `shrink` reduces a schedule that breaks a
promise to a short story.
"""
