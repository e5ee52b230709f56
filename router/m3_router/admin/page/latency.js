// First bytes by lane against the lane's target: median and 95th percentile on one logarithmic line, the share that was
// within, and how fast the rest burns what the objective allows.

import { byId, h, keyed, setText } from "./dom.js";
import { count, milliseconds, percent } from "./format.js";

const SHORTEST_MS = 1;

export function showLatency(state) {
  byId("latency-empty").hidden = state.latency.length > 0;
  const longest = Math.max(...state.latency.map((lane) => Math.max(lane.target_ms, lane.p95_ms ?? 0)), 10) * 1.6;
  const place = (value) => Math.log(Math.max(value, SHORTEST_MS) / SHORTEST_MS) / Math.log(longest / SHORTEST_MS);
  const rows = state.latency.map((lane) => ({ lane, place }));
  keyed(byId("latency-list"), rows, ({ lane }) => lane.name, latencyRow);
}

function latencyRow({ lane: first }) {
  const share = h("b");
  const burn = h("span.pill");
  const range = h("i.range");
  const median = h("i.median");
  const target = h("i.target");
  const numbers = h("p.why.muted");
  const element = h(
    `li.row.latency.lane-${first.name}`, {},
    h("div.row-head", {}, h("i.swatch"), h("span.name", {}, first.name), share, burn),
    h("div.scale", {}, range, median, target),
    numbers,
  );
  return {
    element,
    update: ({ lane, place }) => {
      const isMeasured = lane.requests > 0;
      setText(share, isMeasured ? `${percent(lane.within / lane.requests)} within` : "no request of late");
      burn.hidden = lane.burn === null;
      setText(burn, lane.burn === null ? "" : `burn ${lane.burn.toFixed(1)}`);
      burn.dataset.tone = lane.burn > 1 ? "bad" : lane.burn > 0.5 ? "warn" : "good";
      burn.title = `At 1, exactly the ${percent(1 - lane.objective + 1e-9)} that may miss the target do. Over the last hour: ${lane.hour_burn?.toFixed(1) ?? "nothing yet"}.`;
      range.hidden = median.hidden = lane.p50_ms === null;
      element.style.setProperty("--from", place(lane.p50_ms ?? SHORTEST_MS));
      element.style.setProperty("--to", place(lane.p95_ms ?? SHORTEST_MS));
      element.style.setProperty("--target", place(lane.target_ms));
      const refused = lane.refused ? ` · ${count(lane.refused)} refused` : "";
      setText(
        numbers,
        `p50 ${milliseconds(lane.p50_ms)} · p95 ${milliseconds(lane.p95_ms)} · target ${milliseconds(lane.target_ms)} · ` +
          `${count(lane.requests)} requests${refused}`,
      );
    },
  };
}
