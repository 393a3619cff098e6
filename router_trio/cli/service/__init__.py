"""What a process manager is told of `router-trio run`."""
