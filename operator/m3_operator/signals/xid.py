"""Which XID errors of NVIDIA's driver mean that a GPU must not be used before somebody has dealt with it.

Source: NVIDIA's "Xid Catalog" for Ampere and newer (docs.nvidia.com/deploy/xid-errors, "Resolution Bucket (Immediate
Action)"). Here are those whose action is RESET_GPU or RESTART_BM, which no process can do from inside a container, and
those with a repair procedure of their own (48, 64, 74).

Not here: errors that end with the process that met them (action RESTART_APP: 13, 31, 43, 45, 94 ...), for the group
fails by itself then and may come back where it was; and notices (63: a row will be remapped at the next reset; 92: many
errors that were corrected; 154: names an action for another XID).
"""

from collections.abc import Mapping
from typing import Final

FATAL_XIDS: Final[Mapping[int, str]] = {
    46: "the GPU stopped processing",
    48: "a memory error of two bits",
    62: "the GPU's power management unit halted",
    64: "a defective memory row could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    95: "an uncontained memory error",
    109: "a context switch timed out",
    110: "a security fault",
    119: "the GPU's system processor does not answer",
    120: "an error of the GPU's system processor",
    136: "an NVLink could not be trained",
    140: "an unrecovered memory error",
    143: "the GPU could not be initialised",
    155: "an NVLink error",
    156: "a part of the GPU was retired and needs a reset",
    158: "a fatal timeout of the GPU",
}
