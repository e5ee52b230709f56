"""The command `m3` as a shell sees it: exit codes, and one line for what goes wrong."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from m3_operator.crd import render_all

M3 = Path(sys.executable).parent / "m3"
HEAVY = ("httpx", "kopf", "kubernetes", "openai", "pydantic", "rich.live", "torch", "transformers")


def m3(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([M3, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    result = m3(*arguments)

    assert result.returncode == 0
    for command in ("up", "tiny", "plan", "crd", "chat", "version"):
        assert f" {command} " in result.stdout


def test_the_door_imports_nothing_heavy() -> None:
    code = f"import sys, m3_operator.cli; print([name for name in {HEAVY!r} if name in sys.modules])"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout == "[]\n"


def test_version_is_the_packages() -> None:
    assert m3("version").stdout == f"m3serve {version('m3serve')}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bogus"], 2, "m3: No such command 'bogus'. (see m3 --help)\n"),
        (["chat"], 2, "m3: Missing argument 'text'. (see m3 --help)\n"),
        (["up", "--port", "0"], 2, "m3: Invalid value for '--port': "),
        (["up", "--bogus"], 2, "m3: No such option: --bogus"),
        (["up", "/no/such.yaml"], 1, "m3: /no/such.yaml: No such file or directory\n"),
        (["plan"], 2, "m3: Missing argument 'files'. (see m3 --help)\n"),
        (["plan", "--output", "yaml", "f.yaml"], 2, "m3: Invalid value for '--output'"),
        (["plan", "/no/such.yaml"], 1, "m3: /no/such.yaml: No such file or directory\n"),
        (["crd", "--output", "/no/such/crds.yaml"], 1, "m3: /no/such/crds.yaml: No such file or directory\n"),
        (["chat", "--url", "http://127.0.0.1:1", "Hello"], 1, "m3: no answer from http://127.0.0.1:1: "),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(arguments: list[str], code: int, message: str) -> None:
    result = m3(*arguments)

    assert result.returncode == code
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_tiny_hands_its_arguments_on_unchanged() -> None:
    refused = m3("tiny", "somewhere", "--layers", "0")
    helped = m3("tiny", "--help")

    assert refused.returncode == 2
    assert refused.stderr.startswith("m3 tiny: --layers 0: ")
    assert "--experts-per-token" in helped.stdout


TOO_LARGE = """
apiVersion: serving.m3.dev/v1alpha1
kind: M3Deployment
metadata: {name: m3}
spec:
  model: {name: MiniMax-M3, release: MiniMax-M3, source: {pvc: {claimName: minimax-m3}}}
  parallelism: {gpusPerNode: 8}
  accelerator: {memoryGiB: 79}
"""


def test_plan_ends_with_1_and_the_numbers_where_something_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text(TOO_LARGE)
    (tmp_path / "fits.yaml").write_text(TOO_LARGE.replace("79", "140"))
    refused, planned = m3("plan", str(tmp_path / "large.yaml")), m3("plan", str(tmp_path / "fits.yaml"), "-o", "json")

    assert (refused.returncode, planned.returncode) == (1, 0)
    assert "DOES NOT FIT" in refused.stdout
    assert refused.stderr.startswith(f"m3: {tmp_path}/large.yaml: M3Deployment m3: DoesNotFit: rank 0 of 8 needs 113.0")
    assert refused.stderr.count("\n") == 1
    assert json.loads(planned.stdout)[0]["fits"] is True
    assert planned.stderr == ""


def test_crd_prints_what_the_api_server_takes() -> None:
    documents = list(yaml.safe_load_all(m3("crd").stdout))

    assert [document["kind"] for document in documents] == ["CustomResourceDefinition"] * 3
    assert {document["spec"]["names"]["kind"] for document in documents} == {"M3Deployment", "M3Router", "M3Tenant"}


def test_crd_writes_one_file_or_a_directory_of_them(tmp_path: Path) -> None:
    together, apart = tmp_path / "crds.yaml", tmp_path / "new" / "crds"

    assert m3("crd", "--output", str(together)).returncode == 0
    assert m3("crd", "--output", str(apart)).returncode == 0

    assert {file.name: file.read_text() for file in apart.iterdir()} == render_all()
    assert len(list(yaml.safe_load_all(together.read_text()))) == 3
