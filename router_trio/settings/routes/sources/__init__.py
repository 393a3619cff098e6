"""The kinds of source, each in a file of its own: what a source is asked depends on nothing but its kind."""
