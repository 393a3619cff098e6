"""The kinds of destination, each in a file of its own: everything that depends on the kind is asked of it."""
