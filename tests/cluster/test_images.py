"""The image archives that real nodes run: form, digests and determinism, without a cluster."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from m3_testcluster.bytecode import with_bytecode
from m3_testcluster.images import Blob, Entry, Image, Layer, write_archive, write_layer
from m3_testcluster.interpreter import python_layer
from m3_testcluster.layers import closure, packages_layer, source_layer

LAYER = Layer(
    {
        "/opt/app/run.sh": Entry(b"#!/bin/sh\n", executable=True),
        "/opt/app/data": Entry(b"data"),
        "/opt/link": Entry(link="app/data"),
    },
    directories={"/tmp": 0o1777},  # noqa: S108 - of the image
)


def read_archive(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """The blob that a descriptor points to, after checking it against digest and size."""
    content = files[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
    assert "sha256:" + hashlib.sha256(content).hexdigest() == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return content


@pytest.fixture
def layer_blob(tmp_path: Path) -> Blob:
    return write_layer(LAYER, tmp_path / "layer.tar")


def test_a_layer_holds_its_files_with_modes_that_every_user_can_read(layer_blob: Blob) -> None:
    with tarfile.open(layer_blob.path) as archive:
        entries = [(m.name, oct(m.mode), m.linkname, m.uid, m.mtime) for m in archive]

    assert entries == [
        ("opt", "0o755", "", 0, 0),
        ("opt/app", "0o755", "", 0, 0),
        ("opt/app/data", "0o644", "", 0, 0),
        ("opt/app/run.sh", "0o755", "", 0, 0),
        ("opt/link", "0o777", "app/data", 0, 0),
        ("tmp", "0o1777", "", 0, 0),
    ]


def test_every_descriptor_of_an_archive_matches_its_blob(layer_blob: Blob, tmp_path: Path) -> None:
    config = {"Entrypoint": ["/opt/app/run.sh"], "User": "65534"}
    archive = write_archive(tmp_path / "a.tar", [Image("m3serve.test/a:1", [layer_blob], config)])

    files = read_archive(archive)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    [descriptor] = json.loads(files["index.json"])["manifests"]
    assert descriptor["annotations"]["io.containerd.image.name"] == "m3serve.test/a:1"
    manifest = json.loads(blob(files, descriptor))
    image = json.loads(blob(files, manifest["config"]))
    [layer] = manifest["layers"]
    assert blob(files, layer) == layer_blob.path.read_bytes()
    assert image["rootfs"]["diff_ids"] == [layer["digest"]]
    assert image["config"] == config


def test_images_that_share_a_layer_store_it_once(layer_blob: Blob, tmp_path: Path) -> None:
    images = [Image(f"m3serve.test/{name}:1", [layer_blob], {"User": name}) for name in ("a", "b")]

    files = read_archive(write_archive(tmp_path / "both.tar", images))

    assert len(json.loads(files["index.json"])["manifests"]) == 2
    assert list(files.values()).count(layer_blob.path.read_bytes()) == 1


def test_equal_content_gives_equal_bytes_whatever_the_files_times(tmp_path: Path) -> None:
    archives = []
    for when in (1_000_000_000, 1_500_000_000):
        source = tmp_path / "source"
        source.write_bytes(b"print()\n")
        os.utime(source, (when, when))
        layer = write_layer(Layer({"/b": Entry.of_file(source), "/a": Entry(b"a")}), tmp_path / f"{when}.layer")
        archives.append(write_archive(tmp_path / f"{when}.tar", [Image("m3serve.test/a:1", [layer], {})]))

    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_the_digest_of_a_layer_tells_content_mode_and_place() -> None:
    digests = {
        Layer({"/a": Entry(b"1")}).digest(),
        Layer({"/a": Entry(b"2")}).digest(),
        Layer({"/b": Entry(b"1")}).digest(),
        Layer({"/a": Entry(b"1", executable=True)}).digest(),
        Layer({"/a": Entry(link="1")}).digest(),
        Layer({"/a": Entry(b"1")}, directories={"/c": 0o755}).digest(),
        Layer({"/a": Entry(b"1")}, directories={"/c": 0o700}).digest(),
    }
    assert len(digests) == 7
    assert Layer({"/a": Entry(b"1")}).digest() in digests


def test_bytecode_is_used_by_the_interpreter_without_a_look_at_the_source(tmp_path: Path) -> None:
    layer = with_bytecode(
        Layer({"/lib/said.py": Entry(b"print('from bytecode')\n"), "/lib/template.py": Entry(b"{{ x")})
    )
    for path, entry in layer.files.items():
        place = tmp_path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(entry.read())
    (tmp_path / "lib" / "said.py").write_text("print('from source')\n")

    command = [sys.executable, "-c", "import said"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPYCACHEPREFIX"}
    ran = subprocess.run(command, cwd=tmp_path / "lib", env=environment, capture_output=True, text=True, check=True)

    assert ran.stdout == "from bytecode\n"
    compiled = f"/lib/__pycache__/said.{sys.implementation.cache_tag}.pyc"
    assert layer.files.keys() == {"/lib/said.py", "/lib/template.py", compiled}


def test_the_python_layer_starts_in_an_empty_root_with_ssl_and_sqlite(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    tar = write_layer(python_layer(), tmp_path / "python.tar").path
    root = tmp_path / "root"
    with tarfile.open(tar) as archive:
        archive.extractall(root, filter="tar")

    program = "import asyncio, ctypes, lzma, sqlite3, ssl, sys; print(*sys.version_info[:3])"
    command = ["chroot", "--userspec=65534:65534", root, "/usr/local/bin/python3", "-I", "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ran.stdout.split(), ran.stderr) == ([str(number) for number in sys.version_info[:3]], "")


def test_packages_come_with_what_they_need_and_without_torch() -> None:
    found = closure(["httpx", "safetensors[torch]"])

    assert {"httpx", "anyio", "certifi", "safetensors"} <= found.keys()
    assert not {"torch", "numpy"} & found.keys()
    assert any(path.endswith("/httpx/__init__.py") for path in packages_layer(found.values()).files)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(LookupError, match="test images need no-such-distribution, which is not installed"):
        closure(["no-such-distribution>=1"])


def test_the_source_layer_has_the_packages_and_a_command_for_each_script() -> None:
    files = source_layer().files

    for package in ("m3_kernels", "m3_operator", "m3_router", "m3_worker"):
        assert any(path.endswith(f"/{package}/__init__.py") for path in files)
    commands = {path: entry for path, entry in files.items() if path.startswith("/usr/local/bin/")}
    assert sorted(commands) == [f"/usr/local/bin/{name}" for name in ("m3", "m3-operator", "m3-router", "m3-worker")]
    assert all(entry.executable and entry.content.startswith(b"#!/") for entry in commands.values())
