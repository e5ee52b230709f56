// The newest decisions: which worker took a request and why, who was the runner-up, and how it went. A row opens to
// everything that is known about its request.

import { byId, fill, h, keyed, setText } from "./dom.js";
import { UNKNOWN, clock, count, milliseconds, percent, usd } from "./format.js";

const WHY = {
  prefix: "has the prefix",
  load: "least load",
  warmup: "warming up",
  session: "same session",
  probe: "trial after failures",
  only: "the only one",
};
const OUTCOMES = {
  ok: ["ok", "good"],
  client_gone: ["client left", "warn"],
  worker_error: ["worker failed", "bad"],
  rejected: ["refused", "warn"],
  router_lost: ["router lost", "bad"],
};

const FIRST_ROWS = 15;

export class DecisionList {
  constructor() {
    this.filter = "";
    this.decisions = [];
    this.isWhole = false;
    byId("more").addEventListener("click", () => {
      this.isWhole = !this.isWhole;
      this.draw();
    });
    byId("filter").addEventListener("input", (event) => {
      this.filter = event.target.value.trim().toLowerCase();
      this.draw();
    });
  }

  update(decisions) {
    this.decisions = decisions;
    this.draw();
  }

  draw() {
    const found = this.decisions.filter((decision) => !this.filter || textOf(decision).includes(this.filter));
    const shown = this.isWhole ? found : found.slice(0, FIRST_ROWS);
    byId("more").hidden = found.length <= FIRST_ROWS;
    byId("more").setAttribute("aria-expanded", String(this.isWhole));
    setText(byId("more"), this.isWhole ? "Show fewer" : `Show all ${found.length}`);
    byId("decision-table").hidden = this.decisions.length === 0;
    byId("decisions-empty").hidden = this.decisions.length > 0;
    setText(byId("decisions-note"), this.filter ? `${found.length} of ${this.decisions.length}` : "");
    // A client may give the same request id twice.
    keyed(byId("decision-list"), shown, (one) => `${one.request_id} ${one.time} ${one.duration_ms}`, decisionRow);
  }
}

function laneOf(decision) {
  return decision.context_tier === "long" ? `${decision.service_tier}-long` : decision.service_tier;
}

function whyOf(decision) {
  return WHY[decision.reason] ?? decision.reason;
}

function textOf(decision) {
  const { tenant, model, worker, runner_up, request_id, outcome, reason, error } = decision;
  return [tenant, model, worker, runner_up, request_id, outcome, reason, laneOf(decision), error].join(" ").toLowerCase();
}

function decisionRow(decision) {
  const [outcome, tone] = OUTCOMES[decision.outcome] ?? [decision.outcome, ""];
  const lane = laneOf(decision);
  const open = h(
    "button.link", { type: "button", title: `Everything about ${decision.request_id}`, onclick: () => showDetail(decision) },
    clock(decision.time + decision.duration_ms / 1000),
  );
  const worker = decision.worker
    ? h("span", {}, h("b", {}, decision.worker), decision.reason ? h("span.muted", {}, ` ${whyOf(decision)}`) : "")
    : UNKNOWN;
  const runnerUp = decision.runner_up
    ? h("span", {}, decision.runner_up, h("span.muted", {}, ` +${count(Math.max(decision.runner_up_cost_tokens - decision.cost_tokens, 0))} tok`))
    : UNKNOWN;
  const retries = decision.attempts > 1 ? h("span.muted", {}, ` ×${decision.attempts}`) : "";
  const element = h(
    "tr", {},
    h("td.time", {}, open),
    h("td.tenant", {}, decision.tenant || UNKNOWN),
    h(`td.lane.lane-${lane}`, {}, h("span.tag", {}, h("i.swatch"), lane)),
    cell("number input", "input", count(decision.input_tokens)),
    h("td.worker", {}, worker, retries),
    cell("runner-up", "runner-up", runnerUp),
    cell("cached", "cached, predicted", cachedOf(decision)),
    cell("number waited", "waited", decision.queue_ms ? milliseconds(decision.queue_ms) : UNKNOWN),
    cell("number first", "first byte", milliseconds(decision.first_byte_ms)),
    cell("number cost", "cost", usd(decision.cost_nanousd)),
    h("td.outcome", {}, h("span.pill", { "data-tone": tone, title: decision.error }, outcome)),
  );
  return { element, update: () => {} };
}

/** A cell; its label is shown where the table has become a list of cards. */
function cell(classes, label, content) {
  return h(`td.${classes.replaceAll(" ", ".")}`, { "data-label": label }, content);
}

function cachedOf(decision) {
  if (!decision.input_tokens) return UNKNOWN;
  const actual = percent(decision.cached_tokens / decision.input_tokens);
  if (!decision.predicted_cached_tokens) return actual;
  return h("span", {}, actual, h("span.muted", {}, ` / ${percent(decision.predicted_cached_tokens / decision.input_tokens)}`));
}

function showDetail(decision) {
  setText(byId("detail-title"), decision.request_id);
  const { cost_tokens: cost, runner_up_cost_tokens: otherCost } = decision;
  const facts = [
    ["came", new Date(decision.time * 1000).toLocaleString("en-GB")],
    ["path", decision.path],
    ["model", decision.pool ? `${decision.model} in pool ${decision.pool}` : decision.model],
    ["tenant", decision.tenant],
    ["lane", laneOf(decision)],
    ["worker", decision.worker],
    ["why", whyOf(decision)],
    ["expected cost", cost ? `${count(cost)} tokens to compute first` : ""],
    ["runner-up", decision.runner_up ? `${decision.runner_up}, ${count(otherCost)} tokens` : ""],
    ["input", `${decision.input_tokens} tokens, ${decision.cached_tokens} of them cached`],
    ["predicted cached", decision.predicted_cached_tokens || ""],
    ["output", `${decision.output_tokens} tokens`],
    ["waited", milliseconds(decision.queue_ms)],
    ["first byte", milliseconds(decision.first_byte_ms)],
    ["in all", milliseconds(decision.duration_ms)],
    ["attempts", decision.continuations ? `${decision.attempts}, continued ${decision.continuations} times` : decision.attempts],
    ["cost", `${(decision.cost_nanousd / 1e9).toFixed(9)} USD`],
    ["outcome", `${(OUTCOMES[decision.outcome] ?? [decision.outcome])[0]}, status ${decision.status}`],
    ["error", decision.error],
  ];
  fill(byId("detail-facts"), facts.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
  byId("detail").showModal();
}
