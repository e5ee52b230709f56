"""Which binaries the test cluster runs, and where they come from; nothing is compiled here."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from m3_testcluster.build import ALL, CONTROL_PLANE, BuildError, cache_key, ensure_built
from m3_testcluster.cache import cache_root, locked
from m3_testcluster.modules import MODULES, PINS, Pin, render_go_mod
from m3_testcluster.toolchain import parse_version, required_version


def put_programs(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)


def test_given_binaries_are_used_without_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_programs(tmp_path, *(binary.name for binary in CONTROL_PLANE))
    monkeypatch.setenv("M3_TEST_CLUSTER_BIN", str(tmp_path))

    assert ensure_built(CONTROL_PLANE)["kubectl"] == str(tmp_path / "kubectl")


def test_a_given_directory_that_lacks_binaries_is_refused_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_programs(tmp_path, "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    (tmp_path / "kwok").write_text("not executable")
    monkeypatch.setenv("M3_TEST_CLUSTER_BIN", str(tmp_path))

    with pytest.raises(BuildError, match=f"M3_TEST_CLUSTER_BIN={tmp_path} lacks kubectl, kwok: put executable files"):
        ensure_built(CONTROL_PLANE)


def test_complete_binaries_in_the_cache_need_no_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M3_TEST_CLUSTER_BIN", raising=False)
    monkeypatch.setenv("M3_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    put_programs(tmp_path / "cluster" / cache_key(), *(binary.name for binary in ALL))

    assert ensure_built().directory == tmp_path / "cluster" / cache_key()


def test_a_binary_that_does_not_build_is_named_and_never_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrapper modules lie in a copy whose `pause` does not compile; Go's part is played by a script that fails."""
    go = tmp_path / "path" / "go"
    put_programs(go.parent, "go")
    go.write_text('#!/bin/sh\n[ "$1" = env ] && echo go1.99.0 && exit 0\necho "main.go:3: what is this" >&2; exit 2\n')
    monkeypatch.delenv("M3_TEST_CLUSTER_BIN", raising=False)
    monkeypatch.setenv("M3_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{go.parent}{os.pathsep}{os.environ['PATH']}")
    lines: list[str] = []

    with pytest.raises(BuildError, match=r"building pause failed with status 2:\nmain.go:3: what is this"):
        ensure_built((ALL[-1],), lines.append)

    assert lines == ["test cluster: building pause (1 of 1, once)"]
    assert not list((tmp_path / "cache" / "cluster" / cache_key()).iterdir())


def test_the_cache_key_changes_with_versions_and_flags(tmp_path: Path) -> None:
    for module in MODULES.iterdir():
        (tmp_path / module.name).mkdir()
        for file in module.iterdir():
            (tmp_path / module.name / file.name).write_bytes(file.read_bytes())
    same = cache_key(ALL, tmp_path)
    other_flags = (dataclasses.replace(ALL[0], linker_flags="-w"), *ALL[1:])
    (tmp_path / "etcd" / "go.mod").write_text("module changed\n")

    assert same == cache_key()
    assert len({same, cache_key(ALL, tmp_path), cache_key(other_flags)}) == 3


@pytest.mark.parametrize(
    ("module", "pin"),
    [
        ("kubernetes", "k8s.io/kubernetes v1.37.1"),
        ("etcd", "go.etcd.io/etcd/server/v3 v3.7.3"),
        ("kwok", "sigs.k8s.io/kwok v0.8.0"),
        ("coredns", "github.com/coredns/coredns v1.15.0"),
    ],
)
def test_the_committed_modules_are_those_of_the_pins(module: str, pin: str) -> None:
    assert f"{PINS[module].path} {PINS[module].version}" == pin
    go_mod = (MODULES / module / "go.mod").read_text()
    assert re.search(rf"^(require )?\s*{re.escape(pin)}\b", go_mod, re.MULTILINE)
    assert (MODULES / module / "go.sum").exists()


def test_folders_of_kubernetes_are_replaced_by_their_published_modules() -> None:
    upstream = "go 1.26.0\n\ngodebug default=go1.26\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n"

    pin = Pin("k8s.io/kubernetes", "v1.37.1", ("k8s.io/kubernetes/cmd/kubelet",))

    assert render_go_mod("kubernetes", pin, upstream).split("\n\n") == [
        "module testcluster.invalid/kubernetes",
        "go 1.26.0",
        "godebug default=go1.26",
        "tool k8s.io/kubernetes/cmd/kubelet",
        "require k8s.io/kubernetes v1.37.1",
        "replace k8s.io/api => k8s.io/api v0.37.1\n",
    ]


@pytest.mark.parametrize(
    ("text", "version"), [("go1.26.8", (1, 26, 8)), ("1.26", (1, 26, 0)), ("go1.27rc1", (1, 27, 0)), ("devel", ())]
)
def test_versions_of_go_compare_as_numbers(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_the_highest_version_that_a_module_asks_for_is_required(tmp_path: Path) -> None:
    for name, version in (("a", "1.9.5"), ("b", "1.26.0"), ("c", "1.25.9")):
        (tmp_path / name).write_text(f"module {name}\n\ngo {version}\n")

    assert required_version(tmp_path.iterdir()) == (1, 26, 0)


def test_the_cache_follows_the_first_variable_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("M3_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == Path("/home/someone/.cache/m3serve/cluster")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/m3serve/cluster")
    monkeypatch.setenv("M3_CACHE_DIR", "/chosen")
    assert cache_root() == Path("/chosen/cluster")


def test_a_second_process_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    holder = (
        "import sys; from pathlib import Path; from m3_testcluster.cache import locked\n"
        "with locked(Path(sys.argv[1]), 'holder'):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / "lock")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "held\n"
        release = process.stdin
        lines: list[str] = []

        def report(line: str) -> None:
            lines.append(line)
            if not release.closed:
                release.close()

        with locked(tmp_path / "lock", "build", report):
            assert lines[0] == "build: waiting for another process that is at it"
