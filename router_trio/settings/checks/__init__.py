"""What must hold between the values of a configuration, and what may be meant otherwise."""
