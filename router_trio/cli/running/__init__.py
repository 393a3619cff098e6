"""From the command line of `router-trio run` to a router that runs."""
