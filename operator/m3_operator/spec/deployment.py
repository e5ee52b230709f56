"""What an M3Deployment's `spec` may say: fields, bounds, defaults and the rules between fields.

Each rule is written twice, as CEL for the API server and as a validator for files that never meet one, with one
sentence for both; a test holds them together. Nothing is immutable: a change that workers must see replaces their
groups one by one.
"""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from m3_operator.spec.access import MonitoringSpec, NetworkPolicySpec
from m3_operator.spec.autoscaling import AutoscalingSpec
from m3_operator.spec.drain import DrainSpec
from m3_operator.spec.engine import EngineSpec, ProbesSpec
from m3_operator.spec.experts import ExpertBalancingSpec
from m3_operator.spec.fragments import Model, OwnerName, PodTemplate, cel, require
from m3_operator.spec.group import AcceleratorSpec, ParallelismSpec
from m3_operator.spec.model import ModelSpec
from m3_operator.spec.placement import PlacementSpec
from m3_operator.spec.recovery import RecoverySpec
from m3_operator.spec.rollout import RolloutSpec


class RouterReference(Model):
    """An M3Router of the same namespace."""

    name: OwnerName
    """Name of the M3Router."""


OWN_GPUS = "template.resources: GPUs come from parallelism.gpusPerNode; remove the accelerator's resource"
_GPU_RULE = (
    "!has(self.template) || !has(self.template.resources) || ["
    "has(self.template.resources.limits) && self.accelerator.resourceName in self.template.resources.limits, "
    "has(self.template.resources.requests) && self.accelerator.resourceName in self.template.resources.requests"
    "].filter(x, x).size() == 0"
)


OWN_MODELS = "model.source: tiny and packaged are for the native engine; vllm and sglang take any other"
OWN_COPIES = "parallelism.redundantExperts: of the native engine alone; tell vllm and sglang with engine.args"
NEEDS_GPUS = "parallelism.gpusPerNode: vllm and sglang need at least 1"
_IS_NATIVE = "self.engine.type == 'native'"


class M3DeploymentSpec(Model):
    """Workers that serve one model: `replicas` groups of `parallelism.nodes` pods."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (_GPU_RULE, OWN_GPUS),
            (f"{_IS_NATIVE} || !(has(self.model.source.tiny) || has(self.model.source.packaged))", OWN_MODELS),
            (f"{_IS_NATIVE} || !has(self.parallelism.redundantExperts)", OWN_COPIES),
            (f"{_IS_NATIVE} || self.parallelism.gpusPerNode > 0", NEEDS_GPUS),
        )
    )

    model: ModelSpec
    """What is served."""
    engine: EngineSpec = EngineSpec()
    """The engine that runs the model, and its limits."""
    parallelism: ParallelismSpec = ParallelismSpec()
    """The shape of one group."""
    accelerator: AcceleratorSpec = AcceleratorSpec()
    """How a pod asks for GPUs."""
    expert_balancing: ExpertBalancingSpec = ExpertBalancingSpec()
    """How the experts of a group are spread over its ranks."""
    placement: PlacementSpec = PlacementSpec()
    """Where the pods of a group go."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Groups to run; `kubectl scale` sets it. Ignored with autoscaling by the built-in backend."""
    autoscaling: AutoscalingSpec | None = None
    """Groups by demand; absent: `replicas` groups."""
    rollout: RolloutSpec = RolloutSpec()
    """How a change reaches groups that run."""
    drain: DrainSpec = DrainSpec()
    """How a group leaves."""
    recovery: RecoverySpec = RecoverySpec()
    """How a group that failed comes back."""
    probes: ProbesSpec = ProbesSpec()
    """How patient the health checks are."""
    suspend: bool = False
    """Run no group, but keep `replicas`."""
    router: RouterReference | None = None
    """The M3Router that serves this deployment; absent: it gets one of its own name."""
    network_policy: NetworkPolicySpec = NetworkPolicySpec()
    """Who may reach the workers over the network."""
    monitoring: MonitoringSpec = MonitoringSpec()
    """Who reads the workers' metrics."""
    template: PodTemplate = PodTemplate()
    """What is laid over the worker pods."""

    @model_validator(mode="after")
    def _asks_for_gpus_once(self) -> Self:
        resources = self.template.resources
        require(self.accelerator.resource_name not in {*resources.requests, *resources.limits}, OWN_GPUS)
        return self

    @model_validator(mode="after")
    def _asks_an_engine_for_what_it_has(self) -> Self:
        is_native, source = self.engine.type == "native", self.model.source
        require(is_native or (source.tiny is None and source.packaged is None), OWN_MODELS)
        require(is_native or self.parallelism.redundant_experts is None, OWN_COPIES)
        require(is_native or self.parallelism.gpus_per_node > 0, NEEDS_GPUS)
        return self

    @property
    def desired_groups(self) -> int:
        """Groups that should run now."""
        return 0 if self.suspend else self.replicas
