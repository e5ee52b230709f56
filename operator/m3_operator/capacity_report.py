"""What `m3 plan` prints: of each M3Deployment in the files, what a group holds and serves, and whether it fits.

Owns the reading (the files, and config.json of checkpoints that lie on this machine) and the two forms, a table for
people and JSON for programs. The arithmetic and its sentences are `capacity`'s.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from m3_operator.api import M3Deployment
from m3_operator.capacity.assessment import Assessment, Checkpoint, assess
from m3_operator.capacity.checkpoint_config import ConfigFileError, shape_of_config
from m3_operator.capacity.group import GIB, GroupCapacity, GroupRequest
from m3_operator.capacity.units import plural, size, tokens
from m3_operator.errors import OperatorError
from m3_operator.local.documents import read_documents

_LABEL_WIDTH: Final = 23
_VERDICTS: Final = {"yes": "fits", "no": "DOES NOT FIT", "unknown": "unknown"}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The command line of `m3 plan`."""

    files: tuple[Path, ...]
    output: Literal["table", "json"] = "table"
    checkpoint: Path | None = None
    """Directory whose config.json describes the checkpoints that cannot be read from here."""


@dataclass(frozen=True)
class Planned:
    """One M3Deployment of a file, and the verdict on it."""

    file: Path
    deployment: M3Deployment
    assessment: Assessment


def report(options: PlanOptions, write: Callable[[str], None]) -> None:
    """Write what the files ask for. Raises OperatorError, with the numbers, if a deployment does not fit."""
    given = None if options.checkpoint is None else _read_checkpoint(options.checkpoint)
    planned = [
        Planned(file, deployment, assess(deployment, _checkpoint(deployment, given)))
        for file in options.files
        for deployment in read_documents(file).deployments
    ]
    if options.output == "json":
        write(json.dumps([as_json(one) for one in planned], indent=2))
    else:
        write("\n\n".join("\n".join(table(one)) for one in planned))
        if len(planned) > 1:
            total = sum(one.deployment.spec.desired_groups * one.assessment.request.gpus for one in planned)
            write(f"\nAll {len(planned)} deployments together: {plural(total, 'GPU')}")
    refused = [one for one in planned if one.assessment.answer == "no"]
    if refused:
        first, rest = refused[0], len(refused) - 1
        more = f" (and {plural(rest, 'more deployment')})" if rest else ""
        raise OperatorError(
            f"{first.file}: M3Deployment {first.deployment.metadata.name}: {first.assessment.reason}: "
            f"{first.assessment.message}{more}"
        )


def table(planned: Planned) -> list[str]:
    """The lines about one deployment: a heading, then a name and a value each."""
    found, spec = planned.assessment, planned.deployment.spec
    request, capacity = found.request, found.capacity
    groups = plural(spec.desired_groups, "group")
    memory = "" if request.memory_bytes is None else f" of {request.memory_bytes // GIB:,} GiB"
    gpus = f"{spec.desired_groups * request.gpus:,}: {groups} of {plural(request.gpus, 'GPU')}{memory}"
    rows = [
        ("model", found.model),
        ("GPUs", gpus if request.gpus else f"none: {groups} on CPU, {plural(request.ranks, 'rank')} each"),
    ]
    if capacity is not None:
        rows += _rows(found, capacity)
    verdict = _VERDICTS[found.answer]
    rows.append(("verdict", verdict if found.reason == "Fits" else f"{verdict}: {found.finding}"))
    rows += [("" if number else "any of these mends it", remedy) for number, remedy in enumerate(found.remedies)]
    if found.reason == "ModelUnknown":
        rows.append(("to know it", "set model.release, or name the directory of a config.json with --checkpoint"))
    heading = f"M3Deployment {planned.deployment.metadata.name} ({planned.file})"
    return [heading, *(f"  {label:<{_LABEL_WIDTH}}{value}" for label, value in rows)]


def _rows(found: Assessment, capacity: GroupCapacity) -> list[tuple[str, str]]:
    request, first = found.request, capacity.first
    budget = capacity.budget
    rows = [
        ("ranks", f"{capacity.ranks} a group, computing in {capacity.dtype}"),
        (
            "expert slots",
            f"{capacity.slots_per_rank} a rank in each layer with experts, "
            f"{capacity.redundant_experts} redundant over all ranks",
        ),
        (
            "weights, rank 0",
            f"{size(first.total_bytes)}: experts {size(first.experts_bytes)}, attention {size(first.attention_bytes)}, "
            f"on every rank {size(first.replicated_bytes)}, on rank 0 alone {size(first.ends_bytes)}",
        ),
    ]
    if capacity.ranks > 1:
        rows.append(("weights, others", f"{size(capacity.other.total_bytes)} each"))
    if budget is not None:
        rows.append(
            (
                "memory, rank 0",
                f"weights {size(budget.weights_bytes)} + cache {size(budget.cache_bytes)} + "
                f"reserve {size(budget.reserve_bytes)} + free {size(budget.free_bytes)}",
            )
        )
    held = "not known" if capacity.cache_tokens is None else tokens(capacity.cache_tokens)
    rows.append(("cache", f"{held}, {capacity.token_bytes:,} bytes each on a rank"))
    if capacity.longest_context_tokens is not None:
        rows.append(("longest context", tokens(capacity.longest_context_tokens)))
    if capacity.sequences is not None:
        rows.append(("at once", f"{plural(capacity.sequences, 'sequence')} of {tokens(capacity.context_tokens)}"))
    return [*rows, ("one more group", _one_more_group(request, capacity))]


def _one_more_group(request: GroupRequest, capacity: GroupCapacity) -> str:
    weights = f"{size(capacity.weights_bytes)} of weights"
    if not request.gpus:
        return weights
    memory = "" if request.memory_bytes is None else f" with {size(request.gpus * request.memory_bytes)} of memory"
    return f"{plural(request.gpus, 'GPU')}{memory}, {weights}"


def as_json(planned: Planned) -> dict[str, Any]:
    """One deployment for programs: bytes and tokens as integers, null where not known."""
    found, deployment = planned.assessment, planned.deployment
    request, capacity = found.request, found.capacity
    return {
        "file": str(planned.file),
        "namespace": deployment.metadata.namespace,
        "name": deployment.metadata.name,
        "model": found.model,
        "fits": {"yes": True, "no": False, "unknown": None}[found.answer],
        "reason": found.reason,
        "finding": found.finding,
        "remedies": list(found.remedies),
        "groups": deployment.spec.desired_groups,
        "gpus": deployment.spec.desired_groups * request.gpus,
        "oneMoreGroup": {
            "gpus": request.gpus,
            "gpuMemoryBytes": None if request.memory_bytes is None else request.gpus * request.memory_bytes,
            "weightsBytes": None if capacity is None else capacity.weights_bytes,
        },
        "group": None if capacity is None else _capacity_json(capacity),
    }


def _capacity_json(capacity: GroupCapacity) -> dict[str, Any]:
    first, budget = capacity.first, capacity.budget
    return {
        "ranks": capacity.ranks,
        "dtype": capacity.dtype,
        "slotsPerRank": capacity.slots_per_rank,
        "redundantExperts": capacity.redundant_experts,
        "weightsBytes": {
            "rank0": first.total_bytes,
            "otherRanks": capacity.other.total_bytes,
            "rank0Parts": {
                "experts": first.experts_bytes,
                "attention": first.attention_bytes,
                "everyRank": first.replicated_bytes,
                "rank0Alone": first.ends_bytes,
            },
        },
        "memoryBytes": None
        if budget is None
        else {
            "weights": budget.weights_bytes,
            "cache": budget.cache_bytes,
            "runtime": budget.runtime_bytes,
            "activations": budget.activations_bytes,
            "free": budget.free_bytes,
        },
        "leastGpuMemoryBytes": capacity.least_memory_bytes,
        "cacheBytesPerToken": capacity.token_bytes,
        "cacheTokens": capacity.cache_tokens,
        "longestContextTokens": capacity.longest_context_tokens,
        "contextTokens": capacity.context_tokens,
        "sequences": capacity.sequences,
    }


def _checkpoint(deployment: M3Deployment, given: Checkpoint | None) -> Checkpoint | None:
    """The model of a deployment that does not carry its own shape: a directory of this machine, else what was given."""
    source = deployment.spec.model.source
    if source.tiny is not None or source.packaged is not None:
        return None
    here = None if source.host_path is None else Path(source.host_path.path)
    return _read_checkpoint(here) if here is not None and (here / "config.json").is_file() else given


def _read_checkpoint(directory: Path) -> Checkpoint:
    """Raises OperatorError, one line with file, field and rule."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise OperatorError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise OperatorError(f"{path}: must hold a JSON object, not {type(config).__name__}")
    try:
        return Checkpoint(shape=shape_of_config(config), origin=str(path))
    except ConfigFileError as error:
        raise OperatorError(f"{path}: {error}") from None
