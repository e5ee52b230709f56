// The lanes over time: tokens in flight as stacked areas, and below them, on the same axis, the requests that wait.
// One SVG, drawn anew with each sample; a cursor that pointer and arrow keys move.

import { byId, fill, setText, svg } from "./dom.js";
import { clock, count } from "./format.js";

const RANKS = ["priority", "priority-long", "standard", "standard-long", "batch", "batch-long"];
const LEFT = 46;
const TOP = 10;
const GAP = 26;
const BOTTOM = 22;

export class TimelineChart {
  constructor() {
    this.element = byId("timeline");
    this.readout = byId("timeline-readout");
    this.seconds = 300;
    this.pool = null;
    this.cursor = null; // samples back from the newest
    this.data = null;
    new ResizeObserver(() => this.draw()).observe(this.element);
    this.element.addEventListener("pointermove", (event) => this.point(event));
    this.element.addEventListener("pointerleave", () => this.move(null));
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  update(timeline, pools) {
    this.data = timeline;
    this.pools = pools;
    this.draw();
  }

  show({ seconds = this.seconds, pool = this.pool }) {
    this.seconds = seconds;
    this.pool = pool;
    this.draw();
  }

  /** Lanes in their rank, each with its samples of the span, summed over the pools that are shown. */
  lanes() {
    const found = new Map();
    for (const one of this.data.series.values()) {
      if (this.pool !== null && one.pool !== this.pool) continue;
      const lane = found.get(one.lane) ?? { name: one.lane, tokens: [], waiting: [] };
      lane.tokens = added(lane.tokens, one.tokens.slice(-this.seconds));
      lane.waiting = added(lane.waiting, one.waiting.slice(-this.seconds));
      found.set(one.lane, lane);
    }
    const used = [...found.values()].filter((lane) => lane.tokens.some(Boolean) || lane.waiting.some(Boolean));
    return used.sort((a, b) => RANKS.indexOf(a.name) - RANKS.indexOf(b.name));
  }

  draw() {
    if (!this.data || this.element.clientWidth < 80) return;
    const width = this.element.clientWidth;
    const height = this.element.clientHeight;
    const lanes = this.lanes();
    const samples = Math.min(this.data.requests.length, this.seconds);
    this.shown = { lanes, samples, width };
    const waitingHeight = Math.round(height * 0.2);
    const tokensHeight = height - TOP - GAP - BOTTOM - waitingHeight;
    const x = (sample) => LEFT + ((this.seconds - samples + sample) / (this.seconds - 1)) * (width - LEFT - 1);
    this.x = x;

    const totals = sums(lanes.map((lane) => lane.tokens), samples);
    const bounds = this.bounds();
    const largest = Math.max(...totals, 1);
    const tokensTop = nice(bounds && bounds.limit < largest * 1.7 ? Math.max(bounds.limit, largest) : largest);
    const waitingTop = nice(Math.max(...sums(lanes.map((lane) => lane.waiting), samples), 4));
    const tokensBase = TOP + tokensHeight;
    const waitingBase = tokensBase + GAP + waitingHeight;

    const image = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    image.append(
      ...grid(width, TOP, tokensHeight, tokensTop, "tokens in flight"),
      ...grid(width, tokensBase + GAP, waitingHeight, waitingTop, "requests waiting", 1),
      ...ticks(width, height, this.seconds),
      ...stack(lanes, "tokens", samples, x, tokensBase, tokensHeight / tokensTop),
      ...stack(lanes, "waiting", samples, x, waitingBase, waitingHeight / waitingTop),
    );
    if (bounds) {
      for (const [value, text] of [[bounds.limit, "limit"], [bounds.share, "standard share"]]) {
        if (value <= tokensTop) image.append(...bound(width, tokensBase - (value / tokensTop) * tokensHeight, text));
      }
    }
    this.line = svg("line", { class: "cursor", y1: TOP, y2: waitingBase });
    image.append(this.line);
    fill(this.element, image);
    this.mark();
  }

  bounds() {
    const pools = (this.pools ?? []).filter((pool) => this.pool === null || pool.name === this.pool);
    if (!pools.length) return null;
    const sum = (field) => pools.reduce((total, pool) => total + pool[field], 0);
    return { limit: sum("limit_tokens"), share: sum("standard_share_tokens") };
  }

  point(event) {
    if (!this.shown) return;
    const { samples, width } = this.shown;
    const place = event.clientX - this.element.getBoundingClientRect().left;
    const back = Math.round(((width - 1 - place) / (width - LEFT - 1)) * (this.seconds - 1));
    this.move(back >= 0 && back < samples ? back : null);
  }

  key(event) {
    if (!this.shown) return;
    const oldest = this.shown.samples - 1;
    const step = event.shiftKey ? 10 : 1;
    const at = this.cursor ?? 0;
    const moves = { ArrowLeft: at + step, ArrowRight: at - step, Home: oldest, End: 0, Escape: null };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = moves[event.key];
    this.move(next === null ? null : Math.min(Math.max(next, 0), oldest));
  }

  move(back) {
    this.cursor = back;
    this.mark();
  }

  mark() {
    if (!this.shown || !this.line) return;
    const { lanes, samples } = this.shown;
    const isPointing = this.cursor !== null && this.cursor < samples;
    this.line.classList.toggle("shown", isPointing);
    if (samples === 0) {
      setText(this.readout, "The timeline begins with the first second that the router runs.");
      return;
    }
    const at = samples - 1 - (isPointing ? this.cursor : 0);
    if (isPointing) {
      this.line.setAttribute("x1", this.x(at));
      this.line.setAttribute("x2", this.x(at));
    }
    const moment = this.data.time - (isPointing ? this.cursor : 0) * this.data.step_seconds;
    const offset = this.data.requests.length - samples;
    const parts = lanes.map((lane) => {
      const tokens = lane.tokens[at] ?? 0;
      const waiting = lane.waiting[at] ?? 0;
      return `${lane.name} ${count(tokens)} tokens${waiting ? `, ${count(waiting)} waiting` : ""}`;
    });
    parts.push(`${count(this.data.requests[offset + at] ?? 0)} settled`);
    setText(this.readout, `${isPointing ? clock(moment) : "now"} · ${parts.join(" · ")}`);
  }
}

function added(one, other) {
  return other.map((value, place) => value + (one[place] ?? 0));
}

function sums(columns, length) {
  return Array.from({ length }, (_, place) => columns.reduce((total, column) => total + (column[place] ?? 0), 0));
}

/** The next of 1, 2, 4, 5, 8 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 8, 10].map((step) => step * power).find((step) => step >= value);
}

function grid(width, top, height, largest, title, steps = 2) {
  const parts = [svg("text", { class: "axis-title", x: LEFT + 6, y: top + 10 }, title)];
  for (let step = 0; step <= steps; step += 1) {
    const y = Math.round(top + height - (height * step) / steps) + 0.5;
    parts.push(svg("line", { class: step ? "grid" : "base", x1: LEFT, x2: width, y1: y, y2: y }));
    parts.push(svg("text", { class: "axis", x: LEFT - 8, y: y + 3.5, "text-anchor": "end" }, count((largest * step) / steps)));
  }
  return parts;
}

function ticks(width, height, seconds) {
  const steps = width < 520 ? 2 : 5;
  return Array.from({ length: steps + 1 }, (_, number) => {
    const back = seconds - (number * seconds) / steps;
    const text = back === 0 ? "now" : back < 60 ? `−${back} s` : `−${back / 60} min`;
    const x = LEFT + (number / steps) * (width - LEFT - 1);
    const anchor = number === 0 ? "start" : number === steps ? "end" : "middle";
    return svg("text", { class: "axis", x, y: height - 4, "text-anchor": anchor }, text);
  });
}

function stack(lanes, field, samples, x, base, scale) {
  const floor = new Array(samples).fill(0);
  return lanes.map((lane) => {
    const lower = floor.map((value, at) => `${x(at).toFixed(1)},${(base - value * scale).toFixed(1)}`);
    for (let at = 0; at < samples; at += 1) floor[at] += lane[field][at] ?? 0;
    const upper = floor.map((value, at) => `${x(at).toFixed(1)},${(base - value * scale).toFixed(1)}`);
    const points = [...upper, ...lower.reverse()].join(" ");
    return svg("polygon", { class: `area lane-${lane.name}`, points });
  });
}

function bound(width, y, text) {
  return [
    svg("line", { class: "bound", x1: LEFT, x2: width, y1: y, y2: y }),
    svg("text", { class: "axis over", x: width - 4, y: y - 4, "text-anchor": "end" }, text),
  ];
}
