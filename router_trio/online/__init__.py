"""What would fail, lose or double messages on the servers of a configuration: `router-trio check --online`.

`facts` contains what the servers answered, `asking` asks them. Each finding is a pure function over the facts, in the
list `FINDINGS` of `destinations`, `sources`, `streams` or `servers`; `report` runs them all.
"""
