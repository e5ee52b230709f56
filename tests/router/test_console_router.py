"""The console of a real router: a request that went through it is seen in the browser."""

from pathlib import Path

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


async def test_the_table_of_the_journal_is_a_click_away_and_its_absence_is_told(
    start_router: StartRouter, engine: MockEngine, tmp_path: Path
) -> None:
    with_journal = await start_router([engine], ledger={"directory": str(tmp_path)})
    without = await start_router([engine])
    assert (await with_journal.chat()).status_code == 200
    async with a_browser() as browser, pages_of(browser) as open_page:
        page = await open_page(f"http://{with_journal.router.admin_address}/")
        async with page.expect_download() as download:
            await page.click("#csv")
        lines = (await (await download.value).path()).read_text().splitlines()
        page = await open_page(f"http://{without.router.admin_address}/")
        await page.click("#csv")
        await expect(page.locator("#csv-error")).to_contain_text("set ledger.directory")
    assert [line.split(",")[1].startswith("m3-") for line in lines] == [False, True]
