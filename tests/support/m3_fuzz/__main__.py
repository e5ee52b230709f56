"""`python -m m3_fuzz`: a campaign, or one case of it, against a router of its own. Exits 1 if something was found."""

import argparse
import asyncio
import secrets
import sys

from m3_fuzz.campaign import Findings, campaign, fill, run_case
from m3_fuzz.cases import make_case
from m3_fuzz.corpus import REQUESTS
from m3_fuzz.hostile import workers
from m3_fuzz.process import running_router

MAX_GROWTH_BYTES_PER_MINUTE = 2**19


async def _run(seed: int, seconds: float, case: int | None, compiled: str) -> Findings:
    async with workers(seed) as (good, hostile), running_router(good.port, hostile.port, compiled) as router:
        if case is None:
            await fill(router)
            findings = await campaign(router, seed, seconds)
        else:
            findings = Findings(memory=[(0.0, router.memory_bytes())])
            await run_case(router, make_case(case, seed, REQUESTS), findings)
            findings.faults += router.complaints
    return findings


def main() -> None:
    """Run, and say what was found."""
    parser = argparse.ArgumentParser(prog="m3_fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--case", type=int, default=None, help="only this case of the seed")
    parser.add_argument("--compiled", default="", metavar="DIRECTORY", help="where scripts/compile-router has put it")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"fuzz-router: seed {seed}, {'compiled' if options.compiled else 'interpreted'}", flush=True)
    findings = asyncio.run(_run(seed, options.seconds, options.case, options.compiled))
    print(findings.summary)
    if options.case is None and findings.growth_bytes_per_minute > MAX_GROWTH_BYTES_PER_MINUTE:
        findings.fault(f"the router grows by {findings.growth_bytes_per_minute / 2**20:.2f} MiB a minute")
    for fault in findings.faults:
        print(f"fuzz-router: {fault}")
    sys.exit(1 if findings.faults else 0)


if __name__ == "__main__":
    main()
