"""The safetensors files of a checkpoint: which tensor is in which, opened as they are needed.

Owns the handles. A file is memory-mapped, and what has been read of it counts as the process's memory until it is
unmapped; `release` does that, so that loading never holds weights twice. Knows no tensor by name.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from m3_worker.model.config import CheckpointError, read_json

_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"


class Shards(Mapping[str, Any]):
    """Tensor name -> the open file that has it, in the order of files and, within one, of its names.

    A context manager: its end closes all files. Raises CheckpointError, one line, for a file that cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._open_files: dict[Path, Any] = {}
        self._paths: dict[str, Path] = {}
        for path in _shard_paths(directory):
            self._paths |= dict.fromkeys(self._file(path).keys(), path)

    def path(self, name: str) -> Path:
        """The file that has a tensor."""
        return self._paths[name]

    def release(self) -> None:
        """Unmap all files, and with them what has been read; they are opened again when they are asked for."""
        for file in self._open_files.values():
            file.__exit__(None, None, None)
        self._open_files.clear()

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 # safetensors has no types
        return self._file(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _file(self, path: Path) -> Any:  # noqa: ANN401
        if path not in self._open_files:
            self._open_files[path] = _open(path)
        return self._open_files[path]


def _shard_paths(directory: Path) -> list[Path]:
    """The files that hold the weights, in the order of their names."""
    index = directory / _INDEX_FILE
    if not index.exists():
        return [directory / _SINGLE_FILE]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names")
    files = sorted(set(names.values()))
    outside = [file for file in files if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index}: {outside[0]!r} must be the name of a file in the same directory")
    return [directory / file for file in files]


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the weights must lie beside config.json") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None
