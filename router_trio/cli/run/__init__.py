"""`router-trio run`: a router, or a supervisor with its workers, that runs until a signal arrives."""
