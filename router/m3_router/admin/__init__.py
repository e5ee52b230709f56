"""The admin port: the console, what it shows, who may see it, and what may be changed by whom.

The way of one look: app -> access -> state -> sources, recent, timeline, decisions -> document.
"""

from m3_router.admin.access import Access, DeniedError
from m3_router.admin.acts import ActError, Acts
from m3_router.admin.app import admin_app
from m3_router.admin.audit import Audit
from m3_router.admin.peer import behind_supervisor
from m3_router.admin.serving import AdminServer
from m3_router.admin.sources import RouterSources, Sources
from m3_router.admin.state import Observatory
from m3_router.admin.today import day_of, limits_of, tenants_of
from m3_router.admin.usage import UsageSource

__all__ = [
    "Access",
    "ActError",
    "Acts",
    "AdminServer",
    "Audit",
    "DeniedError",
    "Observatory",
    "RouterSources",
    "Sources",
    "UsageSource",
    "admin_app",
    "behind_supervisor",
    "day_of",
    "limits_of",
    "tenants_of",
]
