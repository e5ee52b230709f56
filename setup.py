"""Builds what pyproject.toml describes: the engine's loops for CPUs, and on request the router's hot path.

The loops (`kernels/m3_kernels/cpu/native`) are C. Where there is no compiler for it, the package installs without them,
and the engine computes on a CPU as its reference does: right, and several times slower; `m3-worker` says so at start.

`M3_COMPILE_ROUTER=1 pip install --no-build-isolation '.[router]'` turns the modules that every request passes through
into one extension, by mypyc (a part of mypy; needs that and a C compiler). The source stays the same Python, and runs
uncompiled as well: half as fast, and easier to debug. The router's image is built this way, by what it did under load
(M3_ROUTER_PROFILE, scripts/compile-router).
"""

import os
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("kernels/m3_kernels/cpu/native")

# Its functions call each other, and nobody takes the place of one: without the detour for that.
ROUTER_FLAGS = ["-fno-semantic-interposition", "-fvisibility=hidden"]
PROFILES = {
    "none": [],
    "generate": ["-fprofile-generate", "-fprofile-update=single"],
    "use": ["-fprofile-use", "-fprofile-correction", "-Wno-missing-profile"],
}

# What runs for every request and every event. The records that msgspec makes (bodies) are C already.
ROUTER_HOT_PATH = [
    f"router/m3_router/{module}.py"
    for module in (
        "admin/recent",
        "bodies/absent",
        "bodies/dialects",
        "bodies/request",
        "bodies/splice",
        "bodies/transcript",
        "bodies/usage",
        "errors",
        "http/alike",
        "http/client_end",
        "http/connections",
        "http/limits",
        "http/messages",
        "http/request_reader",
        "http/wire",
        "http/worker_end",
        "kv_events/alignment",
        "kv_events/view",
        "lanes/fair_queue",
        "lanes/in_flight",
        "lanes/lane",
        "lanes/lanes",
        "lanes/preemption",
        "lanes/tickets",
        "money/bill",
        "money/bill_lines",
        "money/ceilings",
        "money/estimates",
        "money/journal",
        "money/ledger",
        "money/prices",
        "money/spend",
        "placement/affinity",
        "placement/caches",
        "placement/placement",
        "placement/pools",
        "placement/prefix",
        "relay/attempt",
        "relay/caller",
        "relay/closing",
        "relay/intake",
        "relay/outbound",
        "relay/place",
        "relay/relay",
        "relay/reply",
        "relay/routes",
        "relay/services",
        "relay/tries",
        "shared/affinity_notes",
        "telemetry/attainment",
        "telemetry/metrics",
        "tenants/meters",
        "tenants/quotas",
        "tenants/rate_limits",
        "tenants/tenants",
        "workers/breaker",
        "workers/workers",
    )
]


def cpu_loops() -> list[object]:
    """The engine's loops, each compiled for several kinds of processors; nothing where the router is built alone."""
    if not NATIVE.is_dir():
        return []
    loops = Extension(
        "m3_kernels.cpu._native",
        [str(source) for source in sorted(NATIVE.glob("*.c"))],
        depends=[str(header) for header in sorted(NATIVE.glob("*.h"))],
        extra_compile_args=["-O2", "-Wno-psabi", "-pthread"],
        extra_link_args=["-pthread"],
        libraries=["m"],
        optional=True,
    )
    return [loops]


def extensions() -> list[object]:
    """The extension modules of this build."""
    if os.environ.get("M3_COMPILE_ROUTER") != "1":
        return cpu_loops()
    from mypyc.build import mypycify

    flags = [*ROUTER_FLAGS, *PROFILES[os.environ.get("M3_ROUTER_PROFILE", "none")]]
    found: list[Extension] = mypycify(ROUTER_HOT_PATH, opt_level="3", debug_level="0")
    for extension in found:
        extension.extra_compile_args += flags
        extension.extra_link_args += flags
    return [*cpu_loops(), *found]


setup(ext_modules=extensions())
