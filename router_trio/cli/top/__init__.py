"""`router-trio top`: a live table of the routes and connections of a router."""
