"""The check of a configuration against its servers: what would fail, lose or double messages there.

`facts` contains what the servers answered, `asking` asks them. Each finding is a pure function over the facts, in the
list `FINDINGS` of `destinations`, `sources`, `streams` or `servers`; `report` runs them all.
"""
