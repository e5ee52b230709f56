"""Where experts are, and whether the operator moves them while a group serves."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from m3_operator.spec.fragments import Model, cel, require

RATIOS = "expertBalancing: targetRatio must be at most triggerRatio"


class ExpertBalancingSpec(Model):
    """How the experts of a group are spread over its ranks. Nothing of it concerns groups of one rank."""

    model_config = ConfigDict(json_schema_extra=cel(("self.targetRatio <= self.triggerRatio", RATIOS)))

    mode: Literal["Off", "Static", "Dynamic"] = "Static"
    """Off: experts stay as workers place them; Static: copies of experts are spread over nodes once, and how even the
    load is is watched; Dynamic: experts are moved while groups serve, a few at a time, as the load asks for it."""
    window_seconds: Annotated[int, Field(ge=10, le=86400)] = 300
    """How often the load of each expert is looked at."""
    trigger_ratio: Annotated[float, Field(ge=1, le=100)] = 1.15
    """Load of the most loaded rank over the mean, in the worst layer, above which experts are moved."""
    target_ratio: Annotated[float, Field(ge=1, le=100)] = 1.05
    """Layers at this ratio or below are left alone."""
    max_moved_percent: Annotated[int, Field(ge=1, le=100)] = 10
    """Share of all expert slots that one round may move."""

    @model_validator(mode="after")
    def _target_is_within_the_trigger(self) -> Self:
        require(self.target_ratio <= self.trigger_ratio, RATIOS)
        return self
