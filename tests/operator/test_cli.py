"""The command `m3` as a shell sees it: exit codes, and one line for what goes wrong."""

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
    for command in ("up", "tiny", "crd", "chat", "version"):
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


def test_crd_prints_what_the_api_server_takes() -> None:
    documents = list(yaml.safe_load_all(m3("crd").stdout))

    assert [document["kind"] for document in documents] == ["CustomResourceDefinition"] * 2
    assert {document["spec"]["names"]["kind"] for document in documents} == {"M3Deployment", "M3Router"}


def test_crd_writes_one_file_or_a_directory_of_them(tmp_path: Path) -> None:
    together, apart = tmp_path / "crds.yaml", tmp_path / "new" / "crds"

    assert m3("crd", "--output", str(together)).returncode == 0
    assert m3("crd", "--output", str(apart)).returncode == 0

    assert {file.name: file.read_text() for file in apart.iterdir()} == render_all()
    assert len(list(yaml.safe_load_all(together.read_text()))) == 2
