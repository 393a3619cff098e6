"""Chaos: a router between a server and networks that misbehave, on a schedule drawn from a seed.

    python -m tests.resilience.chaos --seed 7 --kind stream      replays one seed
    python -m tests.resilience.chaos --seeds 100                 prints the table of a hundred
    python -m tests.resilience.chaos --kind partitions --seed 7  processes that share partitions: see `partitions`
    python -m tests.resilience.chaos --seeds 25 --variant sparse the same faults, with streams that are made otherwise

`schedule` draws what goes wrong and when, `variants` says how streams, durable and routers are made, `faults` does it
to a `scene` (server, proxies, `routers`), `load` publishes meanwhile, `spy` sees what passes between a router and its
links, and `verdict` holds all of it against the promises, with `hands` and `memory` for streams that die with their
server.
What can't be done to a server at random (clocks, names, certificates, disks) has tests of its own in
`test_surroundings`.
"""
