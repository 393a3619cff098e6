"""What a process manager is told of `router-trio run`, and the signals that it sends."""
