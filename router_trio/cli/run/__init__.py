"""`router-trio run`: one router, or a supervisor and its workers, until a signal ends them."""
