"""The console in a real browser: what a person sees, clicks and types."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from m3_console.browser import CHROMIUM, NO_CHROMIUM, OpenPage, a_browser, pages_of
from m3_console.scene import ADMIN_DIGEST, ADMIN_KEY, Scene, bill

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
    pytest.mark.xdist_group("chromium"),
    pytest.mark.asyncio(loop_scope="module"),  # one browser for all
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    async with pages_of(browser) as opened:
        yield opened


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest_asyncio.fixture(loop_scope="module")
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_it_shows_lanes_workers_latency_spend_and_decisions(
    scene: Scene, stack: AsyncExitStack, open_page: OpenPage
) -> None:
    scene.settle(bill(request_id="r-1"), bill(request_id="r-2", service_tier="priority", worker="worker-1"))
    page = await open_page(await stack.enter_async_context(scene.serving()))

    await expect(page.locator("#connection")).to_have_text("live")
    await expect(page.locator("#pills")).to_contain_text("2 of 2 ready")
    await expect(page.locator("#lane-list li")).to_have_count(2)
    await expect(page.locator("#lane-list li").nth(1)).to_contain_text("30K tokens2 waiting, the oldest 1.5 s")
    await expect(page.locator("#worker-list > li")).to_have_count(2)
    await expect(page.locator("#worker-list > li").first).to_contain_text("4 requests, 24K tokens")
    await expect(page.locator("#worker-list > li").first).to_contain_text("60 % hit")
    await expect(page.locator("#latency-list > li")).to_have_count(2)
    await expect(page.locator("#latency-list > li").first).to_contain_text("100 % within")
    await expect(page.locator("#tenant-list > li")).to_have_count(2)
    await expect(page.locator("#tenant-list > li").last).to_contain_text("95 of 100 tokens per day")
    await expect(page.locator("#decision-list tr")).to_have_count(2)
    await expect(page.locator("#timeline polygon.lane-standard").first).to_be_attached()
    await expect(page.locator("#timeline-readout")).to_contain_text("standard 30K tokens, 2 waiting")


async def test_what_happens_is_seen_without_loading_again(
    scene: Scene, stack: AsyncExitStack, open_page: OpenPage
) -> None:
    page = await open_page(await stack.enter_async_context(scene.serving()))

    await expect(page.locator("#decisions-empty")).to_be_visible()
    await expect(page.locator("#latency-empty")).to_be_visible()
    scene.settle(bill(request_id="r-new"))
    await expect(page.locator("#decision-list tr")).to_have_count(1)
    await expect(page.locator("#decisions-empty")).to_be_hidden()


async def test_a_long_list_of_decisions_opens_and_closes(
    scene: Scene, stack: AsyncExitStack, open_page: OpenPage
) -> None:
    scene.settle(*(bill(request_id=str(number)) for number in range(40)))
    page = await open_page(await stack.enter_async_context(scene.serving()))

    await expect(page.locator("#decision-list tr")).to_have_count(15)
    await page.get_by_role("button", name="Show all 40").click()
    await expect(page.locator("#decision-list tr")).to_have_count(40)
    await page.get_by_role("button", name="Show fewer").click()
    await expect(page.locator("#decision-list tr")).to_have_count(15)


async def test_a_router_that_offers_no_acts_shows_no_buttons_for_them(
    stack: AsyncExitStack, open_page: OpenPage
) -> None:
    page = await open_page(await stack.enter_async_context(Scene(has_acts=False).serving()))

    await expect(page.locator("#worker-list > li")).to_have_count(2)
    await expect(page.locator("#acts")).to_be_hidden()
    await expect(page.locator("#worker-list button")).to_have_count(2)
    await expect(page.locator("#worker-list button").first).to_be_hidden()


async def test_a_worker_is_drained_and_taken_back_by_clicks(
    scene: Scene, stack: AsyncExitStack, open_page: OpenPage
) -> None:
    page = await open_page(await stack.enter_async_context(scene.serving()))
    row = page.locator("#worker-list > li").filter(has_text="worker-1")

    await row.get_by_role("button", name="Drain").click()
    await expect(page.locator("#act-text")).to_contain_text("worker-1 gets no new requests")
    await page.get_by_role("button", name="Cancel").click()
    assert scene.done == []

    await row.get_by_role("button", name="Drain").click()
    await page.locator("#act-go").click()
    await expect(row).to_contain_text("draining")
    await expect(page.locator("#audit-list > li").first).to_contain_text("drain")
    await row.get_by_role("button", name="Take back").click()
    await page.locator("#act-go").click()
    await expect(row).to_contain_text("ready")
    assert [name for name, _ in scene.done] == ["drain", "undrain"]


async def test_an_act_that_is_refused_says_why_and_stays_open(
    scene: Scene, stack: AsyncExitStack, open_page: OpenPage
) -> None:
    page = await open_page(await stack.enter_async_context(scene.serving()))

    await page.locator("#worker-list > li").first.get_by_role("button", name="Drain").click()
    scene.workers.pop("worker-0")
    await page.locator("#act-go").click()

    await expect(page.locator("#act-error")).to_have_text("There is no worker worker-0.")
    await page.keyboard.press("Escape")
    await expect(page.locator("#act")).to_be_hidden()


async def test_a_key_is_revoked_by_its_digest(scene: Scene, stack: AsyncExitStack, open_page: OpenPage) -> None:
    page = await open_page(await stack.enter_async_context(scene.serving()))

    await page.get_by_role("button", name="Revoke a key").click()
    await page.locator("#act-input").fill("sk-a-key-and-no-digest")
    await page.locator("#act-go").click()
    assert await page.locator("#act-input").evaluate("input => input.validity.patternMismatch")
    await page.locator("#act-input").fill("AB" * 32)
    await page.locator("#act-go").click()

    await expect(page.locator("#act")).to_be_hidden()
    assert scene.done == [("revoke", {"sha256": "ab" * 32})]


async def test_decisions_can_be_filtered_and_opened(scene: Scene, stack: AsyncExitStack, open_page: OpenPage) -> None:
    scene.settle(
        bill(request_id="r-1", tenant="acme"), bill(request_id="r-2", tenant="zeta", error="it fell over", status=502)
    )
    page = await open_page(await stack.enter_async_context(scene.serving()))
    await expect(page.locator("#decision-list tr")).to_have_count(2)

    await page.keyboard.press("/")
    await page.keyboard.type("ZETA")
    await expect(page.locator("#decision-list tr")).to_have_count(1)
    await expect(page.locator("#decisions-note")).to_have_text("1 of 2")
    await page.locator("#decision-list button").click()

    await expect(page.locator("#detail")).to_contain_text("r-2")
    await expect(page.locator("#detail")).to_contain_text("it fell over")
    await expect(page.locator("#detail")).to_contain_text("0.000216000 USD")
    await page.locator("#detail").get_by_role("button", name="Close").click()
    await expect(page.locator("#detail")).to_be_hidden()


async def test_it_is_usable_by_keys_alone(scene: Scene, stack: AsyncExitStack, open_page: OpenPage) -> None:
    page = await open_page(await stack.enter_async_context(scene.serving()))
    await expect(page.locator("#connection")).to_have_text("live")

    await page.keyboard.press("2")
    await expect(page.locator("#workers")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.locator("#worker-list button").first).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#act")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#worker-list button").first).to_be_focused()

    await page.locator("#timeline").focus()
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator("#timeline .cursor.shown")).to_be_attached()
    await expect(page.locator("#timeline-readout")).not_to_contain_text("now")
    await page.keyboard.press("Escape")
    await expect(page.locator("#timeline-readout")).to_contain_text("now")

    await page.keyboard.press("?")
    await expect(page.locator("#help")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.keyboard.press("p")
    await expect(page.locator("#connection")).to_have_text("paused")


async def test_a_paused_picture_holds_still(scene: Scene, stack: AsyncExitStack, open_page: OpenPage) -> None:
    page = await open_page(await stack.enter_async_context(scene.serving()))
    await expect(page.locator("#connection")).to_have_text("live")

    await page.get_by_role("button", name="Pause").click()
    scene.settle(bill())
    async with page.expect_response("**/api/state*"):
        pass
    await expect(page.locator("#decision-list tr")).to_have_count(0)
    await page.get_by_role("button", name="Go on").click()
    await expect(page.locator("#decision-list tr")).to_have_count(1)


async def test_a_lost_router_is_said_and_found_again(scene: Scene, open_page: OpenPage) -> None:
    async with scene.serving() as url:
        page = await open_page(url)
        await expect(page.locator("#connection")).to_have_text("live")

    await expect(page.locator("#banner")).to_contain_text("No answer from the router")
    await expect(page.locator("#connection")).to_have_text("no connection")
    await expect(page.locator("#worker-list > li")).to_have_count(2)  # what was last seen stays

    async with scene.serving(port=int(url.rpartition(":")[2])):
        await expect(page.locator("#connection")).to_have_text("live", timeout=12_000)
        await expect(page.locator("#banner")).to_be_hidden()


async def test_elsewhere_it_asks_for_the_admin_key_and_keeps_it_in_the_tab(
    stack: AsyncExitStack, open_page: OpenPage
) -> None:
    scene = Scene(admin_digest=ADMIN_DIGEST)
    url = await stack.enter_async_context(scene.serving())
    page = await open_page("about:blank")
    await page.route(
        "**/api/**", lambda route: route.continue_(headers={**route.request.headers, "forwarded": "for=10.0.0.9"})
    )
    await page.goto(url)

    await expect(page.locator("#login")).to_be_visible()
    await page.locator("#login-key").fill("wrong")
    await page.keyboard.press("Enter")
    await expect(page.locator("#login-why")).to_have_text("The admin key is not the right one.")
    await page.locator("#login-key").fill(ADMIN_KEY)
    await page.keyboard.press("Enter")
    await expect(page.locator("#connection")).to_have_text("live")
    await expect(page.locator("#login")).to_be_hidden()

    await page.reload()
    await expect(page.locator("#connection")).to_have_text("live")
    assert await page.evaluate("[localStorage.getItem('m3-admin-key'), document.cookie]") == [None, ""]


async def test_names_from_outside_stay_text(scene: Scene, stack: AsyncExitStack, open_page: OpenPage) -> None:
    markup = "<img src=x onerror=document.title='owned'>"
    scene.settle(bill(tenant=markup, request_id=markup, worker=markup, error=markup, model=markup))
    page = await open_page(await stack.enter_async_context(scene.serving()))

    await page.locator("#decision-list button").click()
    await expect(page.locator("#detail-title")).to_have_text(markup)
    await expect(page.locator("td.tenant")).to_have_text(markup)
    assert await page.locator("main img, dialog img").count() == 0
    assert "owned" not in await page.title()


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
async def test_nothing_is_cut_off_or_scrolls_sideways(
    scene: Scene, stack: AsyncExitStack, open_page: OpenPage, width: int
) -> None:
    scene.settle(*(bill(request_id=f"r-{number}", tenant="a-tenant-with-quite-a-long-name") for number in range(9)))
    page = await open_page(await stack.enter_async_context(scene.serving()), width=width)

    await expect(page.locator("#decision-list tr")).to_have_count(9)
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    box = await page.locator("#timeline svg").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_can_be_read_in_light_and_dark(
    scene: Scene, stack: AsyncExitStack, open_page: OpenPage, scheme: str
) -> None:
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5, for every text against what lies behind it."""
    scene.settle(bill(), bill(outcome="worker_error", status=502), bill(outcome="client_gone"))
    scene.settle(*(bill(request_id=str(number), first_byte_ms=90_000.0) for number in range(3)))
    page = await open_page(await stack.enter_async_context(scene.serving()), color_scheme=scheme)
    await expect(page.locator("#decision-list tr")).to_have_count(6)

    assert await page.evaluate(LOW_CONTRAST) == []


async def test_the_theme_that_was_chosen_is_kept(scene: Scene, stack: AsyncExitStack, open_page: OpenPage) -> None:
    page = await open_page(await stack.enter_async_context(scene.serving()), color_scheme="light")
    light = await page.evaluate("getComputedStyle(document.body).backgroundColor")

    await page.keyboard.press("t")
    await page.keyboard.press("t")
    await page.reload()

    await expect(page.locator("#theme")).to_have_text("Theme: dark")
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") != light


# For each element with text of its own, the contrast of its colour and the nearest opaque background. Returns the texts
# below 4.5. Formula: WCAG 2.2, relative luminance and contrast ratio.
LOW_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = color.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility({visibilityProperty: true})) continue;
    const style = getComputedStyle(element);
    const color = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [luminance(rgb(color)), luminance(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) low.push(`${text}: ${contrast.toFixed(2)}`);
  }
  return low;
}"""
