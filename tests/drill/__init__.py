"""A drill for people on call: incidents are staged, and their alerts, runbooks and commands are shown.

Real servers, real routers, and a real Prometheus with the project's rules, whose durations are shortened.
"""
