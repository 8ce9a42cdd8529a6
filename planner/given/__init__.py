"""Evaluation of a given fleet.

- `fleet`: the file or the plan -> pools with configurations, and the nodes that hold them
- `ways`: the options that these pools allow, the program over them, and the routing found
- `loads`: how much the full model lets a routing grow
- `evaluate`: price, violations, load factors: the evaluation
"""
