"""The table of metrics, and the rendering of `/metrics`."""
