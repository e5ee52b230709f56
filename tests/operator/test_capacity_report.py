"""What `m3 plan` prints of files, for people and for programs, and how it ends."""

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from m3_operator.capacity_report import PlanOptions, report
from m3_operator.errors import OperatorError

EXAMPLES = Path(str(resources.files("m3_operator"))) / "examples"
M3 = """
apiVersion: serving.m3.dev/v1alpha1
kind: M3Deployment
metadata: {name: m3}
spec:
  model: {name: MiniMax-M3, release: MiniMax-M3, source: {pvc: {claimName: minimax-m3}}}
  engine: {maxContextTokens: 524288}
  parallelism: {nodes: 1, gpusPerNode: 8}
  accelerator: {memoryGiB: 140}
  replicas: 2
"""
TABLE = """\
M3Deployment m3 (FILE)
  model                  MiniMax-M3 (model.release)
  GPUs                   16: 2 groups of 8 GPUs of 140 GiB
  ranks                  8 a group, computing in bfloat16
  expert slots           16 a rank in each layer with experts, 0 redundant over all ranks
  weights, rank 0        113.0 GiB: experts 96.2 GiB, attention 3.2 GiB, on every rank 9.7 GiB, on rank 0 alone 3.9 GiB
  weights, others        109.1 GiB each
  memory, rank 0         weights 113.0 GiB + cache 22.5 GiB + reserve 4.5 GiB + free 1.7 MiB
  cache                  533,504 tokens, 45,312 bytes each on a rank
  longest context        533,504 tokens
  at once                1 sequence of 524,288 tokens
  one more group         8 GPUs with 1,120.0 GiB of memory, 876.5 GiB of weights
  verdict                fits"""


def file(directory: Path, text: str = M3, name: str = "m3.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def printed(*files: Path, **options: Any) -> str:
    written: list[str] = []
    report(PlanOptions(files=files, **options), written.append)
    return "\n".join(written)


def test_the_table_of_a_deployment_that_fits(tmp_path: Path) -> None:
    path = file(tmp_path)
    assert printed(path) == TABLE.replace("FILE", str(path))


def test_one_that_does_not_fit_has_its_table_and_ends_with_the_numbers(tmp_path: Path) -> None:
    path, written = file(tmp_path, M3.replace("524288", "1048576")), list[str]()
    with pytest.raises(OperatorError) as refusal:
        report(PlanOptions(files=(path,)), written.append)
    assert str(refusal.value).startswith(
        f"{path}: M3Deployment m3: DoesNotFit: one sequence of 1,048,576 tokens needs 44.2 GiB of cache on every rank"
    )
    lines = written[0].splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("  verdict "))
    assert lines[at].startswith("  verdict                DOES NOT FIT: one sequence of 1,048,576 tokens")
    assert lines[at + 1 :] == [
        "  any of these mends it  set engine.maxContextTokens to at most 533,504",
        "                         set engine.cacheDtype to fp8",
        "                         serve a checkpoint in MXFP8",
        "                         set parallelism.nodes to 2 (16 GPUs a group)",
        "                         use GPUs of at least 165 GiB",
    ]


def test_several_files_are_told_one_after_the_other_and_added_up(tmp_path: Path) -> None:
    found = printed(file(tmp_path), EXAMPLES / "two-deployments.yaml")
    assert [line for line in found.splitlines() if line.startswith("M3Deployment")] == [
        f"M3Deployment m3 ({tmp_path}/m3.yaml)",
        f"M3Deployment blue ({EXAMPLES}/two-deployments.yaml)",
        f"M3Deployment green ({EXAMPLES}/two-deployments.yaml)",
    ]
    assert found.endswith("\nAll 3 deployments together: 16 GPUs")


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_every_example_has_room(example: str) -> None:
    assert "DOES NOT FIT" not in printed(EXAMPLES / example)


def test_json_has_the_same_numbers(tmp_path: Path) -> None:
    (found,) = json.loads(printed(file(tmp_path), output="json"))
    assert found["fits"] is True
    assert (found["gpus"], found["oneMoreGroup"]["gpus"]) == (16, 8)
    assert found["oneMoreGroup"]["gpuMemoryBytes"] == 8 * 140 * 2**30
    group = found["group"]
    assert group["weightsBytes"]["rank0"] == sum(group["weightsBytes"]["rank0Parts"].values()) == 121_314_279_424
    assert sum(group["memoryBytes"].values()) == 140 * 2**30
    assert (group["cacheTokens"], group["sequences"], group["slotsPerRank"]) == (533_504, 1, 16)


def test_json_of_what_is_not_known_has_nulls(tmp_path: Path) -> None:
    (found,) = json.loads(printed(file(tmp_path, M3.replace("release: MiniMax-M3, ", "")), output="json"))
    assert (found["fits"], found["reason"], found["group"]) == (None, "ModelUnknown", None)
    assert found["oneMoreGroup"] == {"gpus": 8, "gpuMemoryBytes": 8 * 140 * 2**30, "weightsBytes": None}


def test_a_checkpoint_on_this_machine_is_read(tmp_path: Path) -> None:
    checkpoint = packaged_config(tmp_path)
    text = M3.replace("pvc: {claimName: minimax-m3}", f"hostPath: {{path: {checkpoint}}}").replace("524288", "8192")
    assert f"model                  of {checkpoint}/config.json\n" in printed(file(tmp_path, text))


def test_a_config_stands_for_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    checkpoint = packaged_config(tmp_path)
    unknown = file(tmp_path, M3.replace("release: MiniMax-M3, ", "").replace("524288", "8192"))
    told = printed(unknown)
    assert (
        "  verdict                unknown: the size of the model is not known: the config.json in model.source.pvc"
        in told
    )
    assert told.endswith(
        "  to know it             set model.release, or name the directory of a config.json with --checkpoint"
    )
    assert "at once                64 sequences of 8,192 tokens" in printed(unknown, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: No such file or directory"),
        ("{", "config.json: not JSON: "),
        ("[]", "config.json: must hold a JSON object, not list"),
        ('{"model_type": "minimax_m3_vl"}', "config.json: text_config: Field required"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(OperatorError) as refusal:
        printed(file(tmp_path), checkpoint=tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (M3.replace("gpusPerNode: 8", "gpusPerNode: eight"), "spec.parallelism.gpusPerNode: Input should be a valid"),
        (M3.replace("memoryGiB", "memory"), "spec.accelerator.memory: unknown field"),
        (M3.replace("memoryGiB: 140", "memoryGiB: 0"), "spec.accelerator.memoryGiB: Input should be greater than"),
        (M3.replace("release: MiniMax-M3", "release: M3"), "spec.model.release: Input should be 'MiniMax-M3', "),
    ],
)
def test_a_wrong_file_is_refused_with_file_field_value_and_rule(tmp_path: Path, wrong: str, message: str) -> None:
    path = file(tmp_path, wrong)
    with pytest.raises(OperatorError) as refusal:
        printed(path)
    assert str(refusal.value).startswith(f"{path}: document 1, M3Deployment m3: {message}")


def packaged_config(directory: Path) -> Path:
    """A directory with the config.json of the packaged model, and nothing else."""
    target = directory / "checkpoint"
    target.mkdir()
    shutil.copy(str(resources.files("m3_worker") / "data/tiny/config.json"), target)
    return target
