"""Reloads, as the command line has them: what one would do, and when a file asks for one."""
