"""The log: lines, their sentences, and the secrets that are left out of them."""
