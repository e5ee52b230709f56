"""The images that the end-to-end tests run: operator, router, worker, bare Python and the pods' sandbox.

Owns their names and contents, and the cache of finished layers by content: an edit of the project's sources costs one
small layer. Archives are put together where they are needed.
"""

import json
from collections import defaultdict
from pathlib import Path

from m3_testcluster.build import REAL_NODES, ensure_built
from m3_testcluster.bytecode import with_bytecode
from m3_testcluster.cache import cache_root, locked
from m3_testcluster.images import Blob, Entry, Image, Layer, write_archive, write_layer
from m3_testcluster.interpreter import python_layer
from m3_testcluster.layers import closure, extra_requirements, packages_layer, source_layer
from m3_testcluster.progress import Report, step, to_stderr

PAUSE_IMAGE = "m3serve.test/pause:1"
PYTHON_IMAGE = "m3serve.test/python:1"
PROJECT_IMAGES = {part: f"m3serve.test/{part}:e2e" for part in ("operator", "router", "worker")}

# A number, because with runAsNonRoot the kubelet refuses a user by name: it cannot tell who that is.
NOBODY = "65534:65534"
SEARCH_PATH = "PATH=/usr/local/bin:/usr/bin:/bin"


def write_project_images(directory: Path, report: Report = to_stderr) -> Path:
    """Writes an archive with the images of PROJECT_IMAGES into `directory`.

    Their entry points are `m3-operator`, `m3-router` and `m3-worker`. The worker's lacks torch and other heavy
    packages: `environment_mount` gives a pod those of the test environment.
    """
    with step(f"test images: {', '.join(PROJECT_IMAGES)}", report):
        base, sources = _cached(python_layer(), report), _cached(source_layer(), report)
        shared = _shared_package_layers(report)
        images = [
            Image(
                name,
                [base, *(blob for parts, blob in shared.items() if part in parts), sources],
                {"Entrypoint": [f"/usr/local/bin/m3-{part}"], "Env": [SEARCH_PATH], "User": NOBODY},
            )
            for part, name in PROJECT_IMAGES.items()
        ]
        return write_archive(directory / "m3serve-images.tar", images)


def write_python_image(directory: Path, report: Report = to_stderr) -> Path:
    """Writes an archive with PYTHON_IMAGE, which has nothing but Python, into `directory`."""
    with step(f"test images: {PYTHON_IMAGE}", report):
        config = {"Entrypoint": ["/usr/local/bin/python3"], "Env": [SEARCH_PATH], "User": NOBODY}
        return write_archive(
            directory / "python-image.tar", [Image(PYTHON_IMAGE, [_cached(python_layer(), report)], config)]
        )


def write_pause_image(directory: Path, report: Report = to_stderr) -> Path:
    """Writes an archive with PAUSE_IMAGE, the sandbox of every pod, into `directory`."""
    program = Path(ensure_built(REAL_NODES, report)["pause"])
    layer = _cached(Layer({"/pause": Entry(source=program, executable=True)}), report)
    image = Image(PAUSE_IMAGE, [layer], {"Entrypoint": ["/pause"], "User": NOBODY})
    return write_archive(directory / "pause-image.tar", [image])


def _shared_package_layers(report: Report) -> dict[frozenset[str], Blob]:
    """The packages of all parts, each package once: a layer for each set of parts that need the same packages."""
    users: dict[str, set[str]] = defaultdict(set)
    distributions = {}
    for part in PROJECT_IMAGES:
        for name, distribution in closure(extra_requirements(part)).items():
            users[name].add(part)
            distributions[name] = distribution
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for name in sorted(users):
        groups[frozenset(users[name])].append(name)
    return {
        parts: _cached(packages_layer(distributions[name] for name in names), report)
        for parts, names in sorted(groups.items(), key=lambda group: sorted(group[0]))
    }


def _cached(layer: Layer, report: Report) -> Blob:
    """The layer as a finished blob, written now if its content is new."""
    store = cache_root() / "layers"
    path = store / f"{layer.digest()}.tar"
    description = path.with_suffix(".json")
    with locked(store / "lock", "test images", report):
        if not description.exists():
            unfinished = path.with_suffix(".partial")
            written = write_layer(with_bytecode(layer), unfinished)
            unfinished.replace(path)
            facts = {"sha256": written.sha256, "size_bytes": written.size_bytes}
            unfinished.write_text(json.dumps(facts))
            unfinished.replace(description)
    return Blob(path=path, **json.loads(description.read_text()))
