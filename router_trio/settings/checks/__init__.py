"""Check the values of a configuration against each other, and warn of what is probably a mistake."""
