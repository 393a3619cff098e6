"""Every command with its arguments and its help."""
