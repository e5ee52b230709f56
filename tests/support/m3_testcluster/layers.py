"""Image layers of installed distributions and of this project's own packages.

Owns the choice of files. They come from the test environment, and go where the image's interpreter looks by itself, so
that a pod may still set PYTHONPATH to packages that it mounts.
"""

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from m3_testcluster.images import Entry, Layer
from m3_testcluster.interpreter import base_interpreter, site_packages

REPOSITORY = Path(__file__).resolve().parents[3]
OWN_DISTRIBUTION = "m3serve"
OWN_PACKAGES = ("kernels/m3_kernels", "operator/m3_operator", "router/m3_router", "worker/m3_worker")
# Never in a test image: pods that compute mount the test environment instead (torch alone is 5 GB on disk).
HEAVY = frozenset({"mlx", "mlx-cpu", "mlx-lm", "numpy", "torch", "transformers", "triton"})
HEAVY_PREFIXES = ("cuda-", "nvidia-")


def packages_layer(distributions: Iterable[importlib.metadata.Distribution]) -> Layer:
    """The files of installed distributions."""
    files: dict[str, Entry] = {}
    for distribution in distributions:
        for file in distribution.files or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and source.is_file():
                files[f"{site_packages()}/{file}"] = Entry.of_file(source)
    return Layer(files)


def source_layer() -> Layer:
    """This project's four packages as they are now, and its console scripts as commands in `/usr/local/bin`."""
    files: dict[str, Entry] = {}
    for package in OWN_PACKAGES:
        root = REPOSITORY / package
        for source in sorted(root.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                files[f"{site_packages()}/{source.relative_to(root.parent)}"] = Entry(source.read_bytes())
    own = importlib.metadata.distribution(OWN_DISTRIBUTION)
    # Programs ask for their version. What a build in this tree leaves behind is a distribution without a METADATA.
    metadata = f"{site_packages()}/{OWN_DISTRIBUTION}-{own.version}.dist-info/METADATA"
    files[metadata] = Entry(f"Metadata-Version: 2.1\nName: {OWN_DISTRIBUTION}\nVersion: {own.version}\n".encode())
    scripts = own.entry_points.select(group="console_scripts")
    for script in scripts:
        module, function = script.value.split(":")
        text = f"#!{base_interpreter()}\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        files[f"/usr/local/bin/{script.name}"] = Entry(text.encode(), executable=True)
    return Layer(files)


def extra_requirements(extra: str) -> list[str]:
    """What a part of this project asks for: its extra and what every part needs.

    From pyproject.toml: like the sources, as they are now, and not as they were when the project was installed.
    """
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    every = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"][extra])]
    return [str(requirement) for requirement in every if requirement.marker is None or requirement.marker.evaluate()]


def closure(requirements: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that requirements ask for, directly or not, by name, without the heavy ones.

    Raises LookupError where one is not installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if _is_left_out(name) or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as missing:
            raise LookupError(f"the test images need {name}, which is not installed: run `make setup`") from missing
        waiting += _requirements(found[name], extras)
    return found


def _is_left_out(name: str) -> bool:
    return name in HEAVY or name.startswith(HEAVY_PREFIXES) or name == OWN_DISTRIBUTION


def _requirements(distribution: importlib.metadata.Distribution, extras: Iterable[str]) -> list[Requirement]:
    """What the distribution needs on this machine, with the given extras."""
    every = [Requirement(line) for line in distribution.requires or ()]
    names = ("", *extras)
    wanted = [r for r in every if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in names)]
    for requirement in wanted:
        requirement.marker = None
    return wanted
