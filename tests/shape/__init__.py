"""How the tree is built, in numbers: `make shape`. The measures, and how each is taken, are in the modules here."""
