// The top of the page: who the router is, its key figures, and what each lane holds now.

import { byId, h, keyed, setText } from "./dom.js";
import { bytes, count, percent, seconds, usd } from "./format.js";

export function showRouter(state) {
  const { router } = state;
  const up = seconds(state.time - router.started);
  setText(byId("router-line"), `${router.name} · ${router.version} · up ${up}`);
  document.title = `m3 router · ${router.name}`;
  const workers = state.pools.flatMap((pool) => pool.workers);
  const ready = workers.filter((worker) => worker.state === "ready").length;
  const redis = {
    none: ["one replica", "", "No Redis is configured: this replica shares nothing."],
    shared: [`${router.replicas ?? 1} replicas`, "good", "Replicas share prefixes, quotas and the ledger through Redis."],
    local: ["Redis away", "warn", router.redis_reason],
  }[router.redis_mode];
  const pills = [
    { key: "workers", text: `${ready} of ${workers.length} ready`, tone: ready === 0 ? "bad" : ready < workers.length ? "warn" : "good" },
    { key: "redis", text: redis[0], tone: redis[1], title: redis[2] },
  ];
  if (router.is_draining) pills.push({ key: "drain", text: "draining", tone: "warn", title: "No new connections are taken." });
  keyed(byId("pills"), pills, (pill) => pill.key, () => {
    const element = h("li.pill");
    return {
      element,
      update: (pill) => {
        setText(element, pill.text);
        element.title = pill.title ?? "";
        element.dataset.tone = pill.tone;
      },
    };
  });
  setText(
    byId("foot"),
    `${count(router.connections)} connections of ${count(router.connections_limit)} · ` +
      `${bytes(router.buffered_bytes)} of bodies held · hot path ${router.hot_path}`,
  );
}

export function showFigures(state) {
  const { rates } = state;
  const spent = state.tenants.reduce((total, tenant) => total + tenant.cost_nanousd, 0);
  const measured = state.latency.reduce((total, lane) => total + lane.requests, 0);
  const within = state.latency.reduce((total, lane) => total + lane.within, 0);
  const waiting = state.pools.flatMap((pool) => pool.lanes).reduce((total, lane) => total + lane.waiting, 0);
  const hit = rates.input_tokens_per_second ? rates.cached_tokens_per_second / rates.input_tokens_per_second : null;
  const figures = [
    ["Requests", `${count(rates.requests_per_second)}/s`, rates.failures_per_second ? `${count(rates.failures_per_second)}/s failed` : "none failed", rates.failures_per_second > 0],
    ["Waiting", count(waiting), waiting ? "in the lanes" : "nobody waits", false],
    ["Input", `${count(rates.input_tokens_per_second)} tok/s`, `${percent(hit)} from cache`, false],
    ["Output", `${count(rates.output_tokens_per_second)} tok/s`, `over ${rates.seconds} s`, false],
    ["First byte", percent(measured ? within / measured : null), "within target", measured > 0 && within / measured < 0.95],
    ["Spend today", usd(spent), `${usd(rates.cost_nanousd_per_hour)} an hour now`, false],
  ];
  keyed(byId("figures"), figures, (figure) => figure[0], (figure) => {
    const value = h("dd.value");
    const note = h("dd.note");
    const element = h("div.figure", {}, h("dt", {}, figure[0]), value, note);
    return {
      element,
      update: ([, text, small, isBad]) => {
        setText(value, text);
        setText(note, small);
        note.dataset.tone = isBad ? "bad" : "";
      },
    };
  });
}

const ALWAYS_SHOWN = new Set(["priority", "standard"]);

/**
 * What each lane holds now, over the pools that are shown; also the legend of the chart. Lanes that nobody has used for
 * as long as the chart reaches back are left out.
 */
export function showLanes(pools, timeline) {
  const used = new Set(ALWAYS_SHOWN);
  for (const one of timeline.series.values()) {
    if (one.tokens.some(Boolean) || one.waiting.some(Boolean)) used.add(one.lane);
  }
  const lanes = new Map();
  for (const lane of pools.flatMap((pool) => pool.lanes)) {
    const sum = lanes.get(lane.name) ?? { name: lane.name, tokens: 0, waiting: 0, oldest: 0 };
    sum.tokens += lane.in_flight_tokens;
    sum.waiting += lane.waiting;
    sum.oldest = Math.max(sum.oldest, lane.oldest_wait_seconds);
    lanes.set(lane.name, sum);
  }
  const shown = [...lanes.values()].filter((lane) => used.has(lane.name) || lane.tokens || lane.waiting);
  keyed(byId("lane-list"), shown, (lane) => lane.name, (lane) => {
    const value = h("b");
    const note = h("span.muted");
    const element = h(`li.lane.lane-${lane.name}`, {}, h("i.swatch"), h("span", {}, lane.name), value, note);
    return {
      element,
      update: (now) => {
        setText(value, `${count(now.tokens)} tokens`);
        setText(note, now.waiting ? `${count(now.waiting)} waiting, the oldest ${seconds(now.oldest)}` : "nobody waits");
        element.classList.toggle("waits", now.waiting > 0);
      },
    };
  });
}
