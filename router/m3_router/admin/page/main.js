// Puts the page together: the feed, the panels, the theme, the keys.

import { ActPanel } from "./acts.js";
import { DecisionList } from "./decisions.js";
import { byId, fill, h, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { seconds } from "./format.js";
import { showLatency } from "./latency.js";
import { showFigures, showLanes, showRouter } from "./panels.js";
import { showTenants } from "./tenants.js";
import { TimelineChart } from "./timeline.js";
import { showWorkers } from "./workers.js";

const SECTIONS = ["lanes", "workers", "latency", "tenants", "acts", "decisions"];
const THEMES = ["system", "light", "dark"];
const THEME = "m3-theme";

const feed = new Feed(received, connectionChanged);
const chart = new TimelineChart();
const decisions = new DecisionList();
const acts = new ActPanel(feed);
let isPaused = false;
let newest = null;
let pool = null; // the one that the lanes are shown of; null: all

function received(state, timeline) {
  newest = { state, timeline };
  if (!isPaused) show();
}

function show() {
  if (!newest) return;
  const { state, timeline } = newest;
  showPools(state.pools);
  showRouter(state);
  showFigures(state);
  showLanes(state.pools.filter((one) => pool === null || one.name === pool), timeline);
  chart.update(timeline, state.pools);
  showWorkers(state, acts.ask);
  showLatency(state);
  showTenants(state);
  acts.update(state);
  decisions.update(state.decisions);
}

function showPools(pools) {
  const select = byId("pool");
  const names = pools.map((one) => one.name);
  byId("pool-pick").hidden = names.length < 2;
  if (select.dataset.names === names.join("\n")) return;
  select.dataset.names = names.join("\n");
  if (!names.includes(pool)) pool = null;
  fill(select, h("option", { value: "" }, "all"), names.map((name) => h("option", { value: name, selected: name === pool }, name)));
}

function connectionChanged(how, message, detail, wasWrong) {
  document.body.dataset.connection = how;
  const words = { live: isPaused ? "paused" : "live", lost: "no connection", denied: "locked" };
  setText(byId("connection").lastElementChild, words[how]);
  const banner = byId("banner");
  banner.hidden = how !== "lost";
  if (how === "lost") {
    const since = detail ? ` Last heard ${seconds((Date.now() - detail) / 1000)} ago; what you see is from then.` : "";
    setText(banner, `No answer from the router: ${message}.${since} Trying again.`);
  }
  if (how === "denied") {
    if (!newest) setText(byId("router-line"), "not open to everyone");
    if (detail) openLogin(wasWrong ? message : "This router shows itself to callers on its own machine, and to whoever has its admin key.");
    else {
      banner.hidden = false;
      setText(banner, message);
    }
  } else if (byId("login").open) {
    byId("login").close();
  }
}

function openLogin(why) {
  setText(byId("login-why"), why);
  if (!byId("login").open) byId("login").showModal();
  byId("login-key").select();
}

function pause() {
  isPaused = !isPaused;
  const button = byId("pause");
  button.setAttribute("aria-pressed", String(isPaused));
  setText(button, isPaused ? "Go on" : "Pause");
  document.body.dataset.paused = String(isPaused);
  if (document.body.dataset.connection === "live") setText(byId("connection").lastElementChild, isPaused ? "paused" : "live");
  if (!isPaused) show();
}

async function downloadTable() {
  const problem = byId("csv-error");
  problem.hidden = true;
  try {
    const url = URL.createObjectURL(await feed.table()); // a plain link could not carry the admin key
    h("a", { href: url, download: "m3-usage.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    setText(problem, error.message);
    problem.hidden = false;
  }
}

function useTheme(name) {
  document.documentElement.dataset.theme = name;
  setText(byId("theme"), `Theme: ${name}`);
  localStorage.setItem(THEME, name);
}

function nextTheme() {
  useTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
}

function goTo(section) {
  const element = byId(section);
  element.scrollIntoView({ block: "start" });
  element.focus({ preventScroll: true });
}

function keyPressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isTyping = event.target.matches("input, select, textarea");
  if (isTyping) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const number = "123456".indexOf(event.key);
  if (number >= 0) goTo(SECTIONS[number]);
  else if (event.key === "/") byId("filter").focus();
  else if (event.key === "p") pause();
  else if (event.key === "t") nextTheme();
  else if (event.key === "?") byId("help").showModal();
  else return;
  event.preventDefault();
}

byId("pause").addEventListener("click", pause);
byId("theme").addEventListener("click", nextTheme);
byId("csv").addEventListener("click", downloadTable);
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("pool").addEventListener("change", (event) => {
  pool = event.target.value || null;
  chart.show({ pool });
  show();
});
byId("spans").addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (!chosen) return;
  for (const button of byId("spans").children) button.setAttribute("aria-pressed", String(button === chosen));
  chart.show({ seconds: Number(chosen.dataset.seconds) });
});
byId("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  feed.useKey(byId("login-key").value.trim());
  byId("login-key").value = "";
});
byId("login").addEventListener("cancel", (event) => event.preventDefault()); // there is nothing behind it to go back to
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
document.addEventListener("keydown", keyPressed);

const kept = localStorage.getItem(THEME);
useTheme(THEMES.includes(kept) ? kept : "system");
feed.start();
