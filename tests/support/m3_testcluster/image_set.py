"""The images that the end-to-end tests run: operator, router, worker and pause.

Owns their names and contents, and the cache of finished layers and archives by content, so that an edit of the
project's sources costs one small layer.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from m3_testcluster.build import REAL_NODES, ensure_built
from m3_testcluster.bytecode import with_bytecode
from m3_testcluster.cache import cache_root, locked
from m3_testcluster.images import Blob, Entry, Layer, describe, write_image, write_layer
from m3_testcluster.interpreter import python_layer
from m3_testcluster.layers import extra_requirements, packages_layer, source_layer
from m3_testcluster.progress import Report, step, to_stderr

PAUSE_IMAGE = "m3serve.test/pause:1"
PARTS = ("operator", "router", "worker")
# A numeric user: with runAsNonRoot the kubelet refuses an image whose user it cannot tell from root.
NOBODY = "65534:65534"


def image_name(part: str) -> str:
    """The name of the image of `operator`, `router` or `worker`."""
    return f"m3serve.test/{part}:e2e"


def ensure_images(report: Report = to_stderr, root: Path | None = None) -> dict[str, Path]:
    """The OCI archives of the operator, router and worker images by image name, written now if their content is new."""
    store = (root or cache_root()) / "images"
    with locked(store / "lock", "test images", report), step("test images: operator, router, worker", report):
        base = _layer(store, python_layer())
        sources = _layer(store, source_layer())
        return {
            image_name(part): _archive(
                store,
                image_name(part),
                [base, _layer(store, packages_layer(extra_requirements(part))), sources],
                {
                    "Entrypoint": [f"/usr/local/bin/m3-{part}"],
                    "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                    "User": NOBODY,
                },
            )
            for part in PARTS
        }


def python_image(report: Report = to_stderr, root: Path | None = None) -> tuple[str, Path]:
    """Name and archive of an image with nothing but Python, for tests of the cluster itself."""
    store = (root or cache_root()) / "images"
    name = "m3serve.test/python:1"
    with locked(store / "lock", "test images", report), step(f"test images: {name}", report):
        config = {"Entrypoint": ["/usr/local/bin/python3"], "User": NOBODY}
        return name, _archive(store, name, [_layer(store, python_layer())], config)


def pause_image(report: Report = to_stderr, root: Path | None = None) -> tuple[str, Path]:
    """Name and archive of the image of every pod's sandbox."""
    store = (root or cache_root()) / "images"
    program = Path(ensure_built(REAL_NODES, report)["pause"])
    with locked(store / "lock", "test images", report):
        layer = _layer(store, Layer({"/pause": Entry(source=program, executable=True)}))
        return PAUSE_IMAGE, _archive(store, PAUSE_IMAGE, [layer], {"Entrypoint": ["/pause"], "User": NOBODY})


def _layer(store: Path, layer: Layer) -> Blob:
    path = store / "layers" / f"{layer.digest()}.tar"
    _once(path, lambda unfinished: write_layer(with_bytecode(layer), unfinished))
    return describe(path)


def _archive(store: Path, name: str, layers: list[Blob], config: Mapping[str, object]) -> Path:
    part = name.rpartition("/")[2].replace(":", "-")
    path = store / f"{part}-{'-'.join(layer.sha256[:12] for layer in layers)}.tar"
    for outdated in set(store.glob(f"{part}-*.tar")) - {path}:
        outdated.unlink()
    _once(path, lambda unfinished: write_image(unfinished, name, layers, config))
    return path


def _once(path: Path, write: Callable[[Path], object]) -> None:
    """Has `path` written unless it is there; it appears under its name only when complete."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    write(unfinished)
    unfinished.replace(path)
