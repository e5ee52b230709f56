"""What `GET /v1/models` says: the models of the configuration, and where their context tiers part.

Made once from the configuration, so that it does not depend on which workers are up.
"""

from typing import Any

import msgspec

from m3_router.config import ContextTierSettings, RouterConfig


class ModelList:
    """The answers to `/v1/models` and `/v1/models/{id}` as JSON."""

    def __init__(self, config: RouterConfig, created: int) -> None:
        models = [
            _model(model, pool.max_context_tokens, config.context_tier, created)
            for pool in config.pools
            for model in pool.models
        ]
        self.all = msgspec.json.encode({"object": "list", "data": models})
        self._by_id = {model["id"]: msgspec.json.encode(model) for model in models}

    def one(self, model: str) -> bytes:
        """One model's object. Raises KeyError if it is not in the configuration."""
        return self._by_id[model]


def _model(model: str, max_context_tokens: int, tier: ContextTierSettings, created: int) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "m3serve",
        "max_model_len": max_context_tokens,
        "context_tier": {"threshold_tokens": tier.threshold_tokens, "inclusive": tier.inclusive},
    }
