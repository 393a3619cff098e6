"""From text to a checked tree: tokens, grammar, types."""
