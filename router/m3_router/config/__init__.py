"""The settings of a router: what the operator renders and the router reads.

Imports pydantic, yaml and the standard library only, because the operator imports it to render the file.
"""

from m3_router.config.access import (
    UNLIMITED,
    Access,
    AuthSettings,
    KeySettings,
    PlanSettings,
    TenantSettings,
    access_from_yaml,
    keys_to_yaml,
)
from m3_router.config.access_files import LoadedAccess, load_access
from m3_router.config.base import (
    NANOUSD_PER_USD,
    ConfigError,
    ContextTier,
    ServiceTier,
    is_loopback,
    join_url,
    split_address,
)
from m3_router.config.limits import LaneSettings, LimitSettings
from m3_router.config.pools import Engine, ExternalUpstream, ModelRoute, PoolSettings, ServiceWorkers
from m3_router.config.prices import (
    EVERY_MODEL,
    ContextTierSettings,
    ModelPriceSettings,
    PriceSettings,
    RateSettings,
    TierRateSettings,
    nanousd_per_token,
)
from m3_router.config.router import RouterConfig, load, standard_share_tokens
from m3_router.config.services import (
    AffinitySettings,
    LedgerSettings,
    ModerationSettings,
    RedisSettings,
    TracingSettings,
)

__all__ = [
    "EVERY_MODEL",
    "NANOUSD_PER_USD",
    "UNLIMITED",
    "Access",
    "AffinitySettings",
    "AuthSettings",
    "ConfigError",
    "ContextTier",
    "ContextTierSettings",
    "Engine",
    "ExternalUpstream",
    "KeySettings",
    "LaneSettings",
    "LedgerSettings",
    "LimitSettings",
    "LoadedAccess",
    "ModelPriceSettings",
    "ModelRoute",
    "ModerationSettings",
    "PlanSettings",
    "PoolSettings",
    "PriceSettings",
    "RateSettings",
    "RedisSettings",
    "RouterConfig",
    "ServiceTier",
    "ServiceWorkers",
    "TenantSettings",
    "TierRateSettings",
    "TracingSettings",
    "access_from_yaml",
    "is_loopback",
    "join_url",
    "keys_to_yaml",
    "load",
    "load_access",
    "nanousd_per_token",
    "split_address",
    "standard_share_tokens",
]
