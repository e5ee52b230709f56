"""Bytecode for the Python modules of a layer: without it every start of a container would compile them again.

Owns the form of the .pyc files: the unchecked kind of PEP 552, which does not depend on a file's time.
"""

import importlib.util
import marshal
import sys
import warnings
from pathlib import PurePosixPath

from m3_testcluster.images import Entry, Layer


def with_bytecode(layer: Layer) -> Layer:
    """The layer with a .pyc file for each of its modules.

    Files that do not compile stay without: some packages carry templates whose names end in .py.
    """
    modules = {path: entry for path, entry in layer.files.items() if path.endswith(".py") and not entry.link}
    compiled = {_beside(path): _compile(entry.read(), path) for path, entry in modules.items()}
    return Layer({**layer.files, **{path: Entry(body) for path, body in compiled.items() if body}}, layer.directories)


def _beside(path: str) -> str:
    """Where Python looks for the bytecode of a source, unless it was told to look elsewhere."""
    source = PurePosixPath(path)
    return str(source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc")


def _compile(source: bytes, path: str) -> bytes:
    """The content of the .pyc file; empty where the source does not compile."""
    try:
        with warnings.catch_warnings():
            # Whoever runs this may have made warnings errors; that must not change what is written.
            warnings.simplefilter("ignore")
            code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return b""
    unchecked_hash = (0b01).to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + unchecked_hash + importlib.util.source_hash(source) + marshal.dumps(code)
