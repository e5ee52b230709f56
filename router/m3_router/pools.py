"""A pool: workers that serve the same models, behind the same lanes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from m3_router.config import PoolSettings, RouterConfig, standard_share_tokens
from m3_router.errors import Refusal
from m3_router.lanes import Lanes
from m3_router.workers import Workers


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool of the configuration, with what is waiting and running in it."""

    settings: PoolSettings
    max_context_tokens: int
    lanes: Lanes
    workers: Workers


class Pools:
    """All pools, by the models that they serve."""

    def __init__(self, pools: Iterable[Pool]) -> None:
        self._pools = tuple(pools)
        self._by_model = {model: pool for pool in self._pools for model in pool.settings.models}

    @classmethod
    def from_config(cls, config: RouterConfig, now: float) -> "Pools":
        """The pools of a configuration, without workers yet."""
        return cls(
            Pool(
                settings,
                settings.max_context_tokens,
                Lanes(
                    tokens_in_flight=settings.tokens_in_flight,
                    standard_share_tokens=standard_share_tokens(
                        settings.tokens_in_flight, config.lanes.priority_reserved_share
                    ),
                    queue_requests=settings.queue_requests,
                    max_wait_seconds=config.lanes.max_wait_seconds,
                    now=now,
                ),
                Workers(),
            )
            for settings in config.pools
        )

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model, in the order of the configuration."""
        return tuple(self._by_model)

    def of_model(self, model: str) -> Pool:
        """The pool that serves a model. Raises Refusal (404) that names the models there are."""
        pool = self._by_model.get(model)
        if pool is None:
            raise Refusal(
                404,
                f"The model {model!r} does not exist here; there are: {', '.join(self._by_model)}.",
                code="model_not_found",
                param="model",
            )
        return pool

    def has_ready_worker(self) -> bool:
        """Whether any request could run now."""
        return any(pool.workers.ready for pool in self._pools)
