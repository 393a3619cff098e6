"""What the functions of the language do: one file for each kind of value."""
