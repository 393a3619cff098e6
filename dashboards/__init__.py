"""The Grafana dashboards of the router, as code, and the JSON that Grafana imports, made from it.

`python -m dashboards` writes the JSON again; a test compares. The code is the source, so that each panel has its
unit, its explanation and the labels of the metrics as they are; the JSON is what a user takes. The router itself
never imports this package.
"""
