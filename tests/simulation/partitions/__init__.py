"""The simulation of partitions: several routers on one fake broker, whose processes join, leave, die and sleep.

`draw` draws a `schedule`, `world` executes it and writes a `history`, and `judges` hold that against the promises.
"""
