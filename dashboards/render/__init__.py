"""Dashboards on real data: a router in a real outage, a real Prometheus, and a picture of every panel.

Not a part of the router, and not for production: it exists so that no dashboard is published whose panels were never
seen with data. `python -m dashboards.render` needs the `prometheus` binary and matplotlib.
"""
