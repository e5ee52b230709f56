"""The C library's heap, told to keep what it is given back.

A step allocates and frees tensors of megabytes. By default glibc returns such memory to the system at once, and each
step pays for getting it back zeroed, page by page: a third of the time of a step on a CPU. Kept, it is there.
"""

import ctypes
import logging
import sys

log = logging.getLogger(__name__)

# Names and numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_KEPT_BYTES = 512 * 2**20


def keep_freed_memory() -> bool:
    """Keep up to 512 MiB of freed memory for the process, in one heap for all threads. False where it is not glibc.

    Affects the whole process, from now on; to be called before threads allocate.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    wanted = (
        (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_ARENA_MAX, 1),
    )
    is_set = all([mallopt(name, value) == 1 for name, value in wanted])  # noqa: C419 # all of them are set
    if not is_set:
        log.debug("the heap keeps its defaults")
    return is_set
