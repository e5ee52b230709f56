"""What `GET /v1/models` says: the models of the configuration and their other names, how long they are, and where their
context tiers part. It does not depend on which workers are up.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from m3_router.config import RouterConfig
from m3_router.prices import PriceTable


class ModelList:
    """The answers to `/v1/models` and `/v1/models/{id}` as JSON. `wall_clock`: seconds since the epoch."""

    def __init__(self, config: RouterConfig, prices: PriceTable, wall_clock: Callable[[], float]) -> None:
        self._prices = prices
        self._wall_clock = wall_clock
        self._created = int(wall_clock())
        self._contexts: dict[str, int] = {}  # of the pool with the longest, where several serve a model
        for pool in config.pools:
            for model in pool.models:
                self._contexts[model] = max(pool.max_context_tokens, self._contexts.get(model, 0))
        self._models = {**{model: model for model in self._contexts}, **config.aliases}  # by every name

    def all(self) -> bytes:
        """The list."""
        return msgspec.json.encode({"object": "list", "data": [self._document(name) for name in self._models]})

    def one(self, name: str) -> bytes:
        """One model, under the name that was asked for. Raises KeyError if it is not in the configuration."""
        return msgspec.json.encode(self._document(name))

    def _document(self, name: str) -> dict[str, Any]:
        model = self._models[name]
        tariff = self._prices.tariff(model, self._wall_clock())
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "m3serve",
            "root": model,
            "max_model_len": self._contexts[model],
            "context_tier": {"threshold_tokens": tariff.threshold_tokens, "inclusive": tariff.is_inclusive},
        }
