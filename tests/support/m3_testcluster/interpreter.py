"""The running Python as an image layer, at its own path and with every shared library that it loads.

Owns what an image needs so that `python3` starts in it, and so that the compiled packages of the test environment load
in it: they always fit, because it is the interpreter that they were installed for. Nothing is downloaded.
"""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from m3_testcluster.images import Entry, Layer

# Parts of the standard library that a server does not need, and what is installed beside it.
UNUSED = frozenset(["__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test"])
UNUSED_FILES = ("_tkinter.",)
# What compiled wheels may take from the system by the manylinux policy (PEP 600), as far as servers need it.
WHEEL_LIBRARIES = (
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libutil.so.1"),
    *("libgcc_s.so.1", "libgomp.so.1", "libmvec.so.1", "libstdc++.so.6", "libz.so.1"),
)
SYSTEM_LIBRARY_DIRECTORIES = frozenset({"/lib", "/lib64", "/usr/lib", "/usr/lib64"})
DIRECTORIES = {"/dev": 0o755, "/proc": 0o755, "/sys": 0o755, "/tmp": 0o1777}  # noqa: S108 - of the image
ACCOUNTS = {
    "/etc/passwd": b"root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "/etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": b"hosts: files dns\n",
}


@cache
def base_interpreter() -> Path:
    """The interpreter behind the virtual environment, all links resolved."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))


@cache
def site_packages() -> str:
    """The first directory in which the base interpreter looks for packages by itself."""
    question = [str(base_interpreter()), "-I", "-c", "import site; print(site.getsitepackages()[0])"]
    return subprocess.run(question, capture_output=True, text=True, check=True).stdout.strip()


def python_layer() -> Layer:
    """The interpreter, its standard library, their shared libraries, `/usr/local/bin/python3` and a writable `/tmp`."""
    interpreter = base_interpreter()
    files = {str(interpreter): Entry(source=interpreter, executable=True)}
    for directory in sorted(_library_directories()):
        files |= _tree(directory)
    extensions = [entry.source for path, entry in files.items() if entry.source and path.endswith(".so")]
    files |= _shared_libraries([interpreter, *extensions])
    files |= {path: Entry(content) for path, content in ACCOUNTS.items()}
    files["/usr/local/bin/python3"] = Entry(link=str(interpreter))
    return Layer(files, DIRECTORIES)


def _library_directories() -> set[Path]:
    prefixes = {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
    return {Path(sysconfig.get_path(kind, vars=prefixes)) for kind in ("stdlib", "platstdlib")}


def _tree(root: Path) -> dict[str, Entry]:
    """All files below `root` at their own paths; what only development of C extensions needs is left out."""
    files: dict[str, Entry] = {}
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(
            name for name in subdirectories if name not in UNUSED and not name.startswith("config-")
        )
        for name in sorted(name for name in names if not name.startswith(UNUSED_FILES)):
            files[f"{directory}/{name}"] = Entry.of_file(Path(directory, name))
    return files


def _shared_libraries(programs: Iterable[Path]) -> dict[str, Entry]:
    """What the programs load, by `ldd`, and what compiled wheels need, each at the path where this machine has it."""
    listing = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    found = {Path(path).name: path for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE)}
    for name in WHEEL_LIBRARIES:
        places = sorted(f"{Path(path).parent}/{name}" for path in found.values() if Path(path).with_name(name).exists())
        if places:
            found.setdefault(name, places[0])
    files: dict[str, Entry] = {}
    for name, path in sorted(found.items()):
        files[path] = Entry(source=Path(os.path.realpath(path)), executable=True)
        if not _is_searched_by_default(path):
            files[f"/usr/lib/{name}"] = Entry(link=path)
    return files


def _is_searched_by_default(library: str) -> bool:
    """Whether the dynamic linker finds it without a cache: in a system directory or its multiarch child."""
    directory = Path(library).parent
    return bool({str(directory), str(directory.parent)} & SYSTEM_LIBRARY_DIRECTORIES)
