"""A configuration as a document: the TOML file, with the environment laid over it."""
