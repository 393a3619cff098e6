"""Keep one connection: its supervisor, its sessions, how it reconnects, and what its links share."""
