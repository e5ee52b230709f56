"""The console of a real router: a request that went through it is seen in the browser."""

import pytest
from playwright.async_api import expect

from m3_console.browser import CHROMIUM, NO_CHROMIUM, a_browser, pages_of
from m3_mock import MockEngine
from m3_mock.running import StartRouter

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM), pytest.mark.xdist_group("chromium")]


async def test_a_request_through_a_real_router_appears_with_its_worker(
    start_router: StartRouter, engine: MockEngine
) -> None:
    running = await start_router([engine])
    async with a_browser() as browser, pages_of(browser) as open_page:
        page = await open_page(f"http://{running.router.admin_address}/")

        assert (await running.chat()).status_code == 200

        row = page.locator("#decision-list tr")
        await expect(row).to_have_count(1)
        await expect(row).to_contain_text(f"127.0.0.1:{engine.port}")
        await expect(row).to_contain_text("ok")
        await expect(page.locator("#tenant-list > li")).to_contain_text("anonymous")
        await expect(page.locator("#worker-list > li")).to_contain_text("0 requests, 0 tokens")
