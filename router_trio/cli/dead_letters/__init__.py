"""`router-trio dead-letters`: what a route gave up, why, and back to where it came from."""
