"""What was read off a compiled configuration before, kept outside of the repository.

Owns where, and by what: the digest of all that decides the machine code (Triton's version, the kernel with all that it
calls, types, sizes, warps, stages) and of how it is read. A machine that has none of it compiles; no result differs.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import triton

from m3_kernels.gpu import compiled
from m3_kernels.gpu.compiled import CompileCase, Compiled


def directory() -> Path:
    """`M3_CACHE_DIR`, or `m3serve` in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("M3_CACHE_DIR") or Path(home) / "m3serve") / "kernels"


def find(case: CompileCase) -> Compiled | None:
    """What is kept of a configuration; None if it is not known, or what is kept cannot be read."""
    try:
        return Compiled(**json.loads(_file(case).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def keep(case: CompileCase, found: Compiled) -> None:
    """Keep it; a directory that cannot be written is no fault, it costs time."""
    file = _file(case)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(dataclasses.asdict(found)))
        written.replace(file)  # two processes may keep the same
    except OSError:
        return


def _file(case: CompileCase) -> Path:
    decides = (
        triton.__version__,
        case.kernel.cache_key,
        sorted(case.signature.items()),
        sorted((name, str(value)) for name, value in case.constexprs.items()),
        case.num_warps,
        case.num_stages,
        str(compiled.HOPPER),
        Path(compiled.__file__).read_text(),
    )
    return directory() / f"{hashlib.sha256(repr(decides).encode()).hexdigest()}.json"
