"""The HTTP server for probes, metrics and the status page, with limits on clients."""
