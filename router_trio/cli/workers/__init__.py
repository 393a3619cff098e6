"""`router-trio run` with several workers: the supervisor's process, and a worker's."""
