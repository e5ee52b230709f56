"""The console's picture for the documentation: `scripts/console-screenshot [FILE]`."""

import asyncio
import os
import sys
from pathlib import Path

from m3_console.browser import CHROMIUM, NO_CHROMIUM, a_browser, pages_of
from m3_console.lively import lively_router

TARGET = Path("docs/images/console.png")
WIDTH = 1280
LAST_PANEL = "#tenants"  # the picture ends below it
MARGIN = 16


async def take(target: Path, warm_seconds: float) -> None:
    """Let a router run under load, and write what its console looks like then."""
    async with lively_router() as router, a_browser() as browser, pages_of(browser) as open_page:
        await asyncio.sleep(warm_seconds)
        page = await open_page(f"http://{router.admin_address}/", width=WIDTH, height=1048, color_scheme="light")
        await page.wait_for_selector("body[data-connection=live]")
        await asyncio.sleep(2)  # bars grow to their length
        target.parent.mkdir(parents=True, exist_ok=True)
        box = await page.locator(LAST_PANEL).bounding_box()
        if box is None:
            raise RuntimeError(f"the console shows no {LAST_PANEL}")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + MARGIN}
        await page.screenshot(path=target, full_page=True, clip=clip)


def main() -> None:
    """Exits 1 where there is no browser."""
    if CHROMIUM is None:
        sys.exit(f"console-screenshot: {NO_CHROMIUM}")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    asyncio.run(take(target, float(os.environ.get("WARM_SECONDS", "330"))))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
