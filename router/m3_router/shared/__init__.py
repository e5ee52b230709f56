"""What the replicas of a router share through Redis. Nothing on the way of a request waits for any of it.

`link` is the way to Redis and knows whether it can be used; `replicas` who else there is, and what each has in flight;
`affinity_log` which worker holds which prefix. Each hands what it learns to pure modules, and each goes on alone, with
what it knows, while Redis is full, frozen, gone, or back without its data.
"""
