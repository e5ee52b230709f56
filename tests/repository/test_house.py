"""What must hold of the repository as a whole: its layout, what files may not contain, the names it promises."""

import ast
import importlib
import re
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "kernels": "m3_kernels",
    "operator": "m3_operator",
    "router": "m3_router",
    "worker": "m3_worker",
}
# Spelled in halves, so that this file does not contain what it looks for.
REGISTRY_HOSTS = tuple(
    ".".join(halves)
    for halves in (
        ("pypi", "org"),
        ("files.pythonhosted", "org"),
        ("download.pytorch", "org"),
        ("proxy.golang", "org"),
        ("sum.golang", "org"),
        ("registry.npmjs", "org"),
        ("deb.debian", "org"),
        ("ghcr", "io"),
        ("registry.k8s", "io"),
    )
)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def python_modules() -> list[Path]:
    return [path for folder, package in PACKAGES.items() for path in (ROOT / folder / package).rglob("*.py")]


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_component_folder_is_no_package(folder: str) -> None:
    """`operator/__init__.py` would shadow the standard library's operator for any Python started in the root."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_a_python_started_in_the_root_finds_the_standard_library() -> None:
    code = "import operator, collections; print(operator.__file__)"
    found = subprocess.run(["python3", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(ROOT) not in found


def test_no_file_names_a_package_registry_s_host() -> None:
    guilty = []
    for path in tracked_files():
        text = path.read_bytes().decode(errors="replace")
        guilty += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRY_HOSTS if host in text]
    assert guilty == []


def test_no_python_module_is_longer_than_500_lines() -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked_files()
        if path.suffix == ".py" and (lines := len(path.read_text().splitlines())) > 500
    }
    assert too_long == {}


def test_every_module_opens_by_saying_what_it_owns() -> None:
    silent = [str(p.relative_to(ROOT)) for p in python_modules() if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_every_public_function_has_types() -> None:
    untyped = []
    for path in python_modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or node.returns is None:
                untyped.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert untyped == []


@pytest.mark.parametrize("package", PACKAGES.values())
def test_the_way_in_a_package_s_docstring_names_what_exists(package: str) -> None:
    """Each package's docstring carries the way of its main event as `module.name` steps joined by arrows."""
    docstring = importlib.import_module(package).__doc__ or ""
    lines = [line for line in docstring.splitlines() if "→" in line or "->" in line]
    steps = [step for line in lines for step in re.findall(r"`([\w.]+)`", line)]
    assert len(steps) >= 4, f"{package} names no way: {docstring!r}"
    missing = [step for step in steps if not _resolves(package, step)]
    assert missing == []


def _resolves(package: str, step: str) -> bool:
    parts = step.split(".") if step.startswith("m3_") else [package, *step.split(".")]
    target: object = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        if hasattr(target, part):
            target = getattr(target, part)
            continue
        try:
            target = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            return False
    return True


@pytest.mark.parametrize("script", ["m3", "m3-operator", "m3-router", "m3-worker"])
def test_every_console_script_resolves(script: str) -> None:
    (entry,) = entry_points(group="console_scripts", name=script)
    assert callable(entry.load())


def test_the_changelog_s_newest_version_is_the_package_s() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert newest[1] == version


def test_the_demo_is_locked_to_the_versions_that_are_tested() -> None:
    pins = {name: _pins(ROOT / f"requirements/{name}.txt") for name in ("demo", "dev")}
    assert pins["demo"]
    assert pins["demo"] <= pins["dev"]


def _pins(path: Path) -> set[str]:
    return set(re.findall(r"^(\S+==\S+)", path.read_text(), re.M))
