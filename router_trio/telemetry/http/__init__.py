"""The HTTP side: probes, metrics, the status page. Limits on whoever connects."""
