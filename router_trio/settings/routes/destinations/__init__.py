"""The kinds of destination, each in a file of its own: what a destination is asked depends on nothing but its kind."""
