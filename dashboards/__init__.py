"""The Grafana dashboards of the router as code, and the JSON generated from it for import into Grafana.

`python -m dashboards` regenerates the JSON; a test fails if the committed files differ from the code. Writing them as
code gives each panel a unit, a description and the labels that the metrics really have. The router never imports this
package.
"""
