"""The whole router under one seed: drawn configuration, load and faults, on fake brokers, in virtual time.

`draw` makes a schedule of a seed, which is data; `simulation` carries it out; `oracles` hold every step against the
promises; `run.simulate` does all of it, bit by bit the same each time; `shrink` makes a story of a schedule that
breaks.
"""
