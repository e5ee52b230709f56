"""A process that dies with its parent: `python -I -S launcher.py PARENT_PID COMMAND [ARGUMENT ...]`.

Owns one promise of `m3 up`: whatever kills it, SIGKILL included, nothing it started stays behind. The kernel is asked
to send SIGKILL when the parent is gone (PR_SET_PDEATHSIG, kept across exec), then this process becomes COMMAND. Linux
only: elsewhere the command runs all the same, and only a killed `m3 up` can leave it behind. Standard library only,
and no site-packages, because it stands in front of every process and has to be quick.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Become the command in `arguments[1:]`, tied to the life of the process `arguments[0]`."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the kernel was asked; then nobody would ever send the signal.
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")
    try:
        os.execvp(command[0], command)  # noqa: S606 (becoming the command, without a shell, is the point)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
