"""Container images without Docker: a deterministic writer of OCI image archives.

Owns the archive's form (OCI image layout 1.0.0, uncompressed layers, so that a layer's diff id is its blob digest).
What goes into the layers is `layers`'. The same input gives the same bytes: entries are sorted, times are zero, owners
are root.
"""

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Entry:
    """One file of a layer: its bytes, or the file on this machine that has them, or where a symbolic link points."""

    content: bytes = b""
    source: Path | None = None
    link: str = ""
    executable: bool = False

    @classmethod
    def of_file(cls, source: Path) -> "Entry":
        """A file of this machine, executable as it is here."""
        return cls(source=source, executable=os.access(source, os.X_OK))

    def read(self) -> bytes:
        """The bytes of a regular file."""
        return self.source.read_bytes() if self.source else self.content


@dataclass(frozen=True)
class Layer:
    """Files by absolute path, and directories that exist without files (path to mode)."""

    files: Mapping[str, Entry]
    directories: Mapping[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """A digest of the layer's content, cheaper than writing it: equal content gives an equal digest."""
        total = hashlib.sha256()
        for path, mode in sorted(self.directories.items()):
            total.update(f"d\0{path}\0{mode:o}\n".encode())
        for path, entry in sorted(self.files.items()):
            body = b"" if entry.link else hashlib.sha256(entry.read()).digest()
            total.update(f"f\0{path}\0{entry.link}\0{entry.executable}\0".encode() + body + b"\n")
        return total.hexdigest()


@dataclass(frozen=True)
class Blob:
    """A finished blob on this machine."""

    path: Path
    sha256: str
    size_bytes: int

    def descriptor(self, media_type: str) -> dict[str, Any]:
        """The OCI descriptor of this blob."""
        return {"mediaType": media_type, "digest": f"sha256:{self.sha256}", "size": self.size_bytes}


@dataclass(frozen=True)
class Image:
    """One image; `config` is the execution part of its configuration: Entrypoint, Env, User, WorkingDir ..."""

    name: str
    layers: Sequence[Blob]
    config: Mapping[str, Any]


def write_layer(layer: Layer, path: Path) -> Blob:
    """Writes the layer as a tar file to `path`, every parent directory included; all is readable for every user."""
    directories = {parent: 0o755 for name in layer.files for parent in _parents(name)}
    directories |= {parent: 0o755 for name in layer.directories for parent in _parents(name)}
    directories |= layer.directories
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted({*directories, *layer.files}):
            header = tarfile.TarInfo(name.lstrip("/"))
            entry = layer.files.get(name)
            if entry is None:
                header.type, header.mode = tarfile.DIRTYPE, directories[name]
                archive.addfile(header)
            elif entry.link:
                header.type, header.linkname, header.mode = tarfile.SYMTYPE, entry.link, 0o777
                archive.addfile(header)
            else:
                body = entry.read()
                header.size, header.mode = len(body), 0o755 if entry.executable else 0o644
                archive.addfile(header, io.BytesIO(body))
    return describe(path)


def describe(path: Path) -> Blob:
    """The digest and size of a file that is a blob."""
    with path.open("rb") as file:
        return Blob(path, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def write_archive(path: Path, images: Sequence[Image]) -> Path:
    """Writes an OCI archive to `path`, every blob once, and returns the path.

    `ctr images import` gives each image its name.
    """
    blobs: dict[str, bytes | Path] = {}
    manifests = [_add_image(image, blobs) for image in images]
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "oci-layout", _to_json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _to_json(index))
        for sha256, content in sorted(blobs.items()):
            _add(archive, f"blobs/sha256/{sha256}", content)
    return path


def _add_image(image: Image, blobs: dict[str, bytes | Path]) -> dict[str, Any]:
    """Adds the image's blobs to `blobs` and returns its entry in the index."""
    platform_ = {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"}
    configuration = {
        **platform_,
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.sha256}" for layer in image.layers]},
        "history": [{"created_by": "m3_testcluster"} for _ in image.layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _add_json(CONFIG_TYPE, configuration, blobs),
        "layers": [layer.descriptor(LAYER_TYPE) for layer in image.layers],
    }
    blobs.update({layer.sha256: layer.path for layer in image.layers})
    return {
        **_add_json(MANIFEST_TYPE, manifest, blobs),
        "platform": platform_,
        "annotations": {"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name},
    }


def _add_json(media_type: str, value: Any, blobs: dict[str, bytes | Path]) -> dict[str, Any]:
    """Adds a JSON blob and returns its descriptor."""
    content = _to_json(value)
    sha256 = hashlib.sha256(content).hexdigest()
    blobs[sha256] = content
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": len(content)}


def _parents(name: str) -> list[str]:
    return [str(parent) for parent in Path(name).parents if str(parent) != "/"]


def _to_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    header = tarfile.TarInfo(name)
    header.mode = 0o644
    header.size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as body:
        archive.addfile(header, body)
