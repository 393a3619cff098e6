"""From text to a checked tree: its tokens, its grammar, its types."""
