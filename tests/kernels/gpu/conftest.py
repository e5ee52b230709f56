"""Kernels on a CPU tensor run only in Triton's interpreter, which TRITON_INTERPRET=1 switches on for a whole process.

So the tests below `interpreted/` are collected only in a process that has the variable: `test_interpreter.py` starts
such processes, and so does `make check-kernels`. The rest of the suite never sees the variable.
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore = ["test_interpreter.py", "test_compile_gate.py"] if INTERPRETED else ["interpreted"]
