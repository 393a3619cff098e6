"""The kinds of source, each in a file of its own: what is asked of a source depends on nothing but its kind."""
