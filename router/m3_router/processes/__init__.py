"""Several processes of one router: begun, kept running, drained together, and seen as one on the admin port.

    supervisor -> child   (one `m3-router --process I` each; they share the listening address by SO_REUSEPORT)
               -> front   (the admin port: asks all, or passes on) -> exposition (their metrics as one text)

The supervisor relays nothing, and holds nothing that a process needs to go on serving.
"""

from m3_router.processes.child import ChildEndedError
from m3_router.processes.supervisor import supervise

__all__ = ["ChildEndedError", "supervise"]
