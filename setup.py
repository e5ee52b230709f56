"""Builds the distribution that pyproject.toml describes, and on request compiles the router's hot path.

`M3_COMPILE_ROUTER=1 pip install --no-build-isolation '.[router]'` turns the modules that every request passes through
into one extension, by mypyc (a part of mypy; needs that and a C compiler). The source stays the same Python, and runs
uncompiled as well: half as fast, and easier to debug. The router's image is built this way.
"""

import os

from setuptools import setup

# What runs for every request and every event. The records that msgspec makes (bill, bodies) are C already.
ROUTER_HOT_PATH = [
    f"router/m3_router/{module}.py"
    for module in (
        "errors",
        "http/alike",
        "http/client_end",
        "http/connections",
        "http/messages",
        "http/wire",
        "http/worker_end",
        "lanes",
        "ledger",
        "metrics",
        "placement",
        "pools",
        "prices",
        "relay",
        "request",
        "routes",
        "tenants",
        "usage",
        "workers",
    )
]


def extensions() -> list[object]:
    """The extension modules of this build: none unless they are asked for."""
    if os.environ.get("M3_COMPILE_ROUTER") != "1":
        return []
    from mypyc.build import mypycify

    found: list[object] = mypycify(ROUTER_HOT_PATH, opt_level="3", debug_level="0")
    return found


setup(ext_modules=extensions())
