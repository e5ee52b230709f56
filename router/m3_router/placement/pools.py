"""Pools: workers that serve the same models, behind the same lanes; and which pool a model's request goes to."""

from collections.abc import Iterable, Iterator, Mapping

from m3_router.config import Engine, ExternalUpstream, ModelRoute, PoolSettings, RouterConfig
from m3_router.errors import Refusal
from m3_router.lanes.lanes import LaneBounds, Lanes
from m3_router.placement.affinity import Affinity
from m3_router.placement.placement import Placement
from m3_router.tenants.key_file import read_key
from m3_router.workers.workers import Workers


class Pool:
    """One pool of the configuration, with what is waiting and running in it.

    credentials: header lines for an external upstream, read from its key file.
    """

    __slots__ = (
        "affinity",
        "can_continue",
        "credentials",
        "engine",
        "holds_when_empty",
        "lanes",
        "max_context_tokens",
        "name",
        "placement",
        "settings",
        "upstream_model",
        "workers",
    )

    def __init__(
        self,
        settings: PoolSettings,
        *,
        lanes: Lanes,
        workers: Workers,
        placement: Placement,
        affinity: Affinity | None,
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.engine: Engine = settings.engine
        self.max_context_tokens = settings.max_context_tokens
        self.upstream_model: str | None = settings.upstream_model
        self.holds_when_empty = settings.hold_when_empty_seconds > 0
        self.can_continue = settings.continuation and settings.engine != "external"
        self.lanes = lanes
        self.workers = workers
        self.placement = placement
        self.affinity = affinity
        self.credentials = b""

    def use_key(self, key: str) -> None:
        """Show this key to the external upstream from now on, in the way of either dialect."""
        value = key.encode()
        self.credentials = b"authorization: Bearer %b\r\nx-api-key: %b\r\n" % (value, value)


class Route:
    """Where the requests of one model go. model: its name in the configuration, whatever the client called it."""

    __slots__ = ("_shares", "_total", "model", "pools")

    def __init__(self, model: str, shares: list[tuple[Pool, int]]) -> None:
        self.model = model
        self.pools = [pool for pool, _ in shares]
        self._shares = shares
        self._total = sum(weight for _, weight in shares)

    def pool(self, draw: int) -> Pool:
        """The pool of one request, by weight; equal draws give the same pool, so that a conversation stays in it."""
        if len(self._shares) == 1:
            return self._shares[0][0]
        place = draw % self._total
        for pool, weight in self._shares:
            place -= weight
            if place < 0:
                return pool
        raise AssertionError("the weights of a route do not add up")


class Pools:
    """All pools, by the models that they serve."""

    def __init__(
        self, pools: Iterable[Pool], routes: Iterable[ModelRoute] = (), aliases: Mapping[str, str] | None = None
    ) -> None:
        self._pools = {pool.name: pool for pool in pools}
        weights = {route.model: {share.pool: share.weight for share in route.pools} for route in routes}
        servers: dict[str, list[Pool]] = {}
        for pool in self._pools.values():
            for model in pool.settings.models:
                servers.setdefault(model, []).append(pool)
        self._routes: dict[str, Route] = {}
        for model, serving in servers.items():
            if model in weights:
                shares = [(self._pools[name], weight) for name, weight in weights[model].items()]
            else:
                shares = [(serving[0], 1)]
            self._routes[model] = Route(model, shares)
        self.models = tuple(self._routes)  # in the order of the configuration, without aliases
        for alias, model in (aliases or {}).items():
            self._routes[alias] = self._routes[model]

    @classmethod
    def from_config(cls, config: RouterConfig, now: float) -> "Pools":
        """The pools of a configuration, without workers yet. Raises ConfigError if a key file cannot be read."""
        pools = []
        for settings in config.pools:
            bounds = LaneBounds.from_settings(settings, config.lanes)
            placement = Placement(config.affinity, config.lanes.long_prefills_per_worker)
            pool = Pool(
                settings,
                lanes=Lanes(bounds, now),
                workers=Workers(settings.engine),
                placement=placement,
                affinity=Affinity(config.affinity) if config.affinity.enabled else None,
            )
            if isinstance(settings.workers, ExternalUpstream):
                pool.use_key(read_key(settings.workers.api_key_file))
            pools.append(pool)
        return cls(pools, config.routes, config.aliases)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def route(self, model: str) -> Route:
        """Where a model's requests go, by its name or an alias. Raises Refusal (404), which names those there are."""
        route = self._routes.get(model)
        if route is None:
            raise Refusal(
                404,
                f"The model {model!r} does not exist here; there are: {', '.join(self._routes)}.",
                code="model_not_found",
                param="model",
            )
        return route

    def can_take_requests(self) -> bool:
        """Whether any request would run now, or wait for the worker that its being here will bring about."""
        return any(pool.workers.ready or pool.holds_when_empty for pool in self._pools.values())

    def has_ready_worker(self) -> bool:
        """Whether any request could run now."""
        return any(pool.workers.ready for pool in self._pools.values())
