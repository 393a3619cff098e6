"""Commands for the beginning: a first configuration, and completion for a shell."""
