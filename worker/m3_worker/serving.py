"""What the HTTP API answers with: the loaded model, and the state of the worker around it.

Owns the phases of a worker (loading, ready, draining, failed) and what each says to a request. Written by the server,
read by the API, both on the event loop.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from m3_worker.chat.template import ChatTemplate
from m3_worker.engine import Engine
from m3_worker.gpu_metrics import GpuMetrics
from m3_worker.grammar import Grammars
from m3_worker.model.expert_plan import ExpertPlan
from m3_worker.model.generation_defaults import GenerationDefaults
from m3_worker.tokenizer import Tokenizer
from m3_worker.usage_records import UsageRecords

if TYPE_CHECKING:
    from m3_worker.media.loader import MediaLoader  # brings the decoders, which only a model that sees needs


class Phase(StrEnum):
    """Where a worker is in its life; a failed one never comes back."""

    LOADING = "loading"
    READY = "ok"
    DRAINING = "draining"
    FAILED = "failed"


class ServedExperts(Protocol):
    """The experts of a model. All but `plan` are for the engine's thread, between steps."""

    @property
    def plan(self) -> ExpertPlan:
        """Where they are."""

    def take_layer(self, plan: ExpertPlan, layer: int) -> None:
        """Have all ranks take one layer of `plan`. Raises SwapError if one cannot."""

    def finish(self, plan: ExpertPlan) -> None:
        """Every rank has all layers of `plan`: its epoch is the group's."""

    def load(self) -> list[list[int]]:
        """[layers with experts][experts]: tokens that chose each, since the start."""


class ServingGroup(Protocol):
    """The ranks that compute with this one."""

    def when_lost(self, responsible: Callable[[str], None]) -> None:
        """Whom to tell, from any thread, why the group is of no use any more."""

    def end(self, *, in_order: bool) -> None:
        """Have the other ranks end: by word if all is in order, else by force. Blocks, for some seconds at most."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model with all that is needed to answer for it."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    grammars: Grammars
    template: ChatTemplate | None
    defaults: GenerationDefaults
    vocab_size: int
    max_context_tokens: int
    eos_token_ids: frozenset[int]
    created_seconds: int
    """Unix time when it was loaded."""
    media: "MediaLoader | None" = None
    """Reads images and videos; None if the model takes none."""
    experts: ServedExperts | None = None
    """None if the model has none."""
    group: ServingGroup | None = None
    """None if this process computes alone."""


@dataclass(slots=True)
class LoadProgress:
    """Bytes of weights; written by the thread that loads."""

    read_bytes: int = 0
    needed_bytes: int = 0


@dataclass(slots=True)
class WorkerState:
    """The worker as requests see it."""

    max_body_bytes: int
    model: ServedModel | None = None
    is_draining: bool = False
    progress: LoadProgress = field(default_factory=LoadProgress)
    usage_records: UsageRecords = field(default_factory=UsageRecords)
    gpus: GpuMetrics | None = None
    """None if it computes on none, or nothing can be known of them."""

    @property
    def phase(self) -> Phase:
        """An engine that failed is told of even while draining."""
        if self.model is not None and self.model.engine.failure is not None:
            return Phase.FAILED
        if self.is_draining:
            return Phase.DRAINING
        return Phase.LOADING if self.model is None else Phase.READY

    @property
    def reason(self) -> str | None:
        """Why the worker failed, if it did."""
        return self.model.engine.failure if self.model is not None else None
