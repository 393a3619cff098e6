"""One connection: its supervisor, its sessions, how it comes back, and what its links have in common."""
