"""The verdict on one M3Deployment: it fits, it does not, or what would have to be known to say so. Pure.

Owns the way from a spec to a model and a request, by the very settings that its workers get; `verdict` judges.
What cannot be known is named and nothing is guessed: a checkpoint in a volume that cannot be read here has the size of
the release that the spec declares, or an unknown one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from m3_operator.api import M3Deployment
from m3_operator.capacity.group import GIB, GroupCapacity, GroupRequest, ShapeRefusedError, group_capacity
from m3_operator.capacity.releases import PACKAGED, RELEASES, tiny_shape
from m3_operator.capacity.remedies import remedies
from m3_operator.capacity.shape import ModelShape
from m3_operator.capacity.verdict import VerdictReason, verdict
from m3_operator.render.engines.native import worker_settings
from m3_worker.config import WorkerSettings

Reason = VerdictReason | Literal["ModelUnknown", "FlagsUnknown", "EngineUnknown", "Simulated"]
Answer = Literal["yes", "no", "unknown"]

_ANSWERS: Final[Mapping[Reason, Answer]] = {"Fits": "yes", "Simulated": "yes", "DoesNotFit": "no", "NotSupported": "no"}
_READ_FROM_FLAGS: Final = (
    "model",
    "device",
    "dtype",
    "cache_dtype",
    "index_cache_dtype",
    "max_context_tokens",
    "max_concurrent",
    "redundant_experts",
    "cache_tokens",
    "simulate",
)
"""The settings that memory depends on, which `engine.args` may set again."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model whose config.json was read."""

    shape: ModelShape
    origin: str
    """Which file."""


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What is known of one M3Deployment's memory."""

    reason: Reason
    finding: str
    """One sentence, with the numbers."""
    remedies: tuple[str, ...] = ()
    """Where the answer is no: changes of which any one would do."""
    model: str
    """Which model it is, and how that is known."""
    request: GroupRequest
    capacity: GroupCapacity | None = None
    """None where the model is unknown, simulated, or cannot be divided over the ranks."""

    @property
    def answer(self) -> Answer:
        """Whether it fits."""
        return _ANSWERS.get(self.reason, "unknown")

    @property
    def message(self) -> str:
        """The finding, with what to change, on one line."""
        advice = f"; any of these would do: {'; '.join(self.remedies)}" if self.remedies else ""
        return self.finding + advice


def assess(deployment: M3Deployment, checkpoint: Checkpoint | None = None) -> Assessment:
    """Whether one group of the deployment fits its GPUs. `checkpoint`: its model, where somebody could read it."""
    shape, model = _model(deployment, checkpoint)
    settings = worker_settings(deployment, model=Path("model"), host="localhost", port=1)
    request = _request(deployment, settings)
    engine = deployment.spec.engine.type
    if engine != "native":
        message = f"memory is worked out for the native engine; of {engine} it is not known, and not checked"
        return Assessment(reason="EngineUnknown", finding=message, model=model, request=request)
    if shape is None:
        return Assessment(reason="ModelUnknown", finding=model, model="unknown", request=request)
    try:
        settings = _with_flags(settings, deployment.spec.engine.args)
    except ValueError as error:
        return Assessment(reason="FlagsUnknown", finding=str(error), model=model, request=request)
    request = _request(deployment, settings)
    if settings.simulate:
        message = "engine.args has --simulate: nothing is computed, and no GPU memory needed"
        return Assessment(reason="Simulated", finding=message, model=model, request=request)
    try:
        capacity = group_capacity(shape, request)
    except ShapeRefusedError as error:
        return Assessment(reason="DoesNotFit", finding=str(error), model=model, request=request)
    reason, finding = verdict(shape, request, capacity)
    source = deployment.spec.model.source
    is_own = source.tiny is not None or source.packaged is not None
    changes = remedies(shape, request, capacity, has_releases=not is_own) if reason == "DoesNotFit" else []
    return Assessment(
        reason=reason, finding=finding, remedies=tuple(changes), model=model, request=request, capacity=capacity
    )


def _model(deployment: M3Deployment, checkpoint: Checkpoint | None) -> tuple[ModelShape | None, str]:
    """The shape with how it is known, or none with what is missing."""
    spec, source = deployment.spec.model, deployment.spec.model.source
    if source.tiny is not None:
        return tiny_shape(source.tiny), "a random tiny model"
    if source.packaged is not None:
        return PACKAGED, "the tiny model of the worker"
    if checkpoint is not None:
        return checkpoint.shape, f"of {checkpoint.origin}"
    if spec.release is not None:
        return RELEASES[spec.release], f"{spec.release} (model.release)"
    kind = next(name for name in ("pvc", "hostPath", "image", "huggingFace") if name in source.manifest())
    return None, (
        f"the size of the model is not known: the config.json in model.source.{kind} cannot be read from here, and "
        "model.release does not say which published release it is"
    )


def _with_flags(settings: WorkerSettings, arguments: tuple[str, ...]) -> WorkerSettings:
    """The settings with what `engine.args` sets again of those that memory depends on.

    Raises ValueError, one line, if a flag cannot be read, or names another model or device than the spec.
    """
    given = _flags(arguments)
    if not given:
        return settings
    for name in ("model", "device"):
        if name in given:
            raise ValueError(f"engine.args: --{name} {given[name]} replaces what the spec says of it, and is not known")
    try:
        return WorkerSettings.model_validate({**settings.model_dump(), **given})
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        name = "--" + str(fault["loc"][0]).replace("_", "-") if fault["loc"] else "flags"
        raise ValueError(f"engine.args: {name}: {fault['msg']}") from None


def _flags(arguments: tuple[str, ...]) -> dict[str, str]:
    """The flags among these that memory depends on: `--name=value`, `--name value`, or `--simulate` alone."""
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        flag, separator, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in _READ_FROM_FLAGS:
            found[name] = value if separator else "true" if name == "simulate" else next(words, "")
    return found


def _request(deployment: M3Deployment, settings: WorkerSettings) -> GroupRequest:
    parallelism, declared = deployment.spec.parallelism, deployment.spec.accelerator.memory_gib
    return GroupRequest(
        nodes=parallelism.nodes,
        gpus_per_node=parallelism.gpus_per_node,
        memory_bytes=None if declared is None else declared * GIB,
        redundant_experts=settings.redundant_experts,
        dtype=settings.dtype,
        cache_dtype=settings.cache_dtype,
        index_cache_dtype=settings.index_cache_dtype,
        context_tokens=settings.max_context_tokens,
        max_concurrent=settings.max_concurrent,
        cache_tokens=settings.cache_tokens,
    )
