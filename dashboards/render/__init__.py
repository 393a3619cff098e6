"""Draw the dashboards with real data: a router in a real outage, a real Prometheus, and a picture of every panel.

This is neither part of the router nor for production. It makes sure that no dashboard is published whose panels were
never seen with data. `python -m dashboards.render` needs the `prometheus` binary and matplotlib.
"""
