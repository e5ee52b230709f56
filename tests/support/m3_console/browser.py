"""The Chromium of this system, and pages that must not complain."""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright, expect

CHROMIUM = os.environ.get("M3_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NO_CHROMIUM = "there is no Chromium on the PATH, and M3_CHROMIUM names none"
TIMEOUT_MS = 15_000  # of what a page is waited for: much, since a busy machine draws late
OpenPage = Callable[..., Awaitable[Page]]


@asynccontextmanager
async def a_browser() -> AsyncIterator[Browser]:
    """A browser until the block is left."""
    expect.set_options(timeout=TIMEOUT_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def pages_of(browser: Browser) -> AsyncIterator[OpenPage]:
    """Opens pages; asserts in the end that the browser had nothing to complain about."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def heard(message: ConsoleMessage) -> None:
        # That a router does not answer is what some tests are about.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    async def opened(url: str, *, width: int = 1280, height: int = 900, **options: str) -> Page:
        context = await browser.new_context(viewport={"width": width, "height": height}, **options)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", heard)
        await page.goto(url)
        return page

    try:
        yield opened
    finally:
        for context in contexts:
            await context.close()
    assert complaints == []
