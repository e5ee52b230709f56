"""What `GET /v1/models` says: the models of the configuration and their other names, how long they are, and where their
context tiers part. It does not depend on which workers are up.

One object serves both dialects: OpenAI's fields (`object`, `created`) beside Anthropic's (`type`, `display_name`,
`created_at`).
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from m3_router.config import RouterConfig
from m3_router.money.prices import PriceTable


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
        models = [self._document(name) for name in self._models]
        page = {"has_more": False, "first_id": models[0]["id"], "last_id": models[-1]["id"]}
        return msgspec.json.encode({"object": "list", "data": models, **page})

    def one(self, name: str) -> bytes:
        """One model, under the name that was asked for. Raises KeyError if it is not in the configuration."""
        return msgspec.json.encode(self._document(name))

    def _document(self, name: str) -> dict[str, Any]:
        model = self._models[name]
        tariff = self._prices.tariff(model, self._wall_clock())
        return {
            "id": name,
            "object": "model",
            "type": "model",
            "display_name": name,
            "created": self._created,
            "created_at": f"{datetime.fromtimestamp(self._created, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "owned_by": "m3serve",
            "root": model,
            "max_model_len": self._contexts[model],
            "context_tier": {"threshold_tokens": tariff.threshold_tokens, "inclusive": tariff.is_inclusive},
        }
