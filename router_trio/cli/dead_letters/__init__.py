"""`router-trio dead-letters`: list, show, redrive or purge the messages that a route gave up."""
