"""Replicas of a router that share limits, in simulated time: a store that does what the lease scripts do, and a world.

`Store` is the independent definition of the scripts (`m3_router.shared.lease_script`): plain Python, no floats. A test
compares the two on a real redis-server. `World` runs replicas against a store, lets requests come between any two
steps and in the middle of calls, loses answers, and counts what was admitted.
"""

from m3_leases.store import Store
from m3_leases.world import World

__all__ = ["Store", "World"]
