"""The structure of the tree in numbers: `make shape`. The measures, and how each is taken, are in the modules here."""
