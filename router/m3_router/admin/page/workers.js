// The workers: state, load against the busiest one, and whether their caches hold what placement counted on.

import { byId, h, keyed, setShare, setText } from "./dom.js";
import { count, percent } from "./format.js";

const TONES = { ready: "good", unready: "bad", draining: "warn" };

/** askAct(name, fields) opens the dialog of an act. */
export function showWorkers(state, askAct) {
  const workers = state.pools.flatMap((pool) => pool.workers.map((worker) => ({ ...worker, pool: pool.name })));
  const most = Math.max(...workers.map(load), 1);
  const rows = workers.map((worker) => ({ worker, most, acts: state.acts, hasPools: state.pools.length > 1 }));
  byId("workers-empty").hidden = workers.length > 0;
  setText(byId("workers-note"), workers.length ? "cache: input tokens of the last 5 minutes" : "");
  keyed(byId("worker-list"), rows, ({ worker }) => `${worker.pool}\n${worker.name}`, () => workerRow(askAct));
}

function load(worker) {
  return worker.tokens_in_flight + (worker.remote_tokens ?? 0);
}

function workerRow(askAct) {
  let shown = null;
  const state = h("span.pill");
  const name = h("b.name");
  const marks = h("span.muted.marks");
  const button = h("button.quiet", { type: "button", onclick: () => askAct(shown.act, { pool: shown.pool, worker: shown.name }) });
  const prefill = h("i.part.prefill");
  const decode = h("i.part.decode");
  const remote = h("i.part.remote");
  const loadText = h("span.figure-text");
  const actual = h("i.part.cache");
  const predicted = h("i.mark");
  const cacheText = h("span.figure-text");
  const reason = h("p.why.muted");
  const element = h(
    "li.row.worker", {},
    h("div.row-head", {}, name, state, marks, button),
    h("div.measure", {}, h("span.label", {}, "load"), h("div.meter", {}, prefill, decode, remote), loadText),
    h("div.measure", {}, h("span.label", {}, "cache"), h("div.meter", {}, actual, predicted), cacheText),
    reason,
  );
  return {
    element,
    update: ({ worker, most, acts, hasPools }) => {
      const act = worker.state === "draining" ? "undrain" : "drain";
      shown = { act, pool: worker.pool, name: worker.name };
      setText(name, hasPools ? `${worker.pool} / ${worker.name}` : worker.name);
      name.title = worker.address;
      setText(state, worker.state);
      state.dataset.tone = TONES[worker.state];
      setText(marks, marksOf(worker).join(" · "));
      button.hidden = !acts.includes(act);
      setText(button, act === "drain" ? "Drain" : "Take back");
      const first = worker.prefill_tokens ?? 0;
      setShare(prefill, first / most);
      setShare(decode, (worker.tokens_in_flight - first) / most);
      setShare(remote, (worker.remote_tokens ?? 0) / most);
      const others = worker.remote_tokens ? ` + ${count(worker.remote_tokens)} of others` : "";
      setText(loadText, `${count(worker.requests)} requests, ${count(worker.tokens_in_flight)} tokens${others}`);
      showCache(worker.recent, actual, predicted, cacheText);
      reason.hidden = worker.state === "ready" && (worker.breaker ?? "closed") === "closed";
      setText(reason, worker.reason);
    },
  };
}

function marksOf(worker) {
  const marks = [];
  if (worker.breaker && worker.breaker !== "closed") marks.push(`breaker ${worker.breaker.replace("_", " ")}`);
  if (worker.is_warming_up) marks.push("warming up");
  if (worker.long_prefills) marks.push(`${worker.long_prefills} long`);
  if (worker.prefix_blocks !== null) marks.push(`${count(worker.prefix_blocks)} prefixes`);
  if (worker.epoch) marks.push(`epoch ${worker.epoch.slice(0, 8)}`);
  if (worker.recent?.failures) marks.push(`${count(worker.recent.failures)} failed`);
  return marks;
}

function showCache(recent, actual, predicted, text) {
  const input = recent?.input_tokens ?? 0;
  setShare(actual, input ? recent.cached_tokens / input : 0);
  setShare(predicted, input ? recent.predicted_cached_tokens / input : 0);
  predicted.hidden = !input || !recent.predicted_cached_tokens;
  if (!input) {
    setText(text, "nothing answered of late");
  } else {
    const hit = percent(recent.cached_tokens / input);
    const expected = percent(recent.predicted_cached_tokens / input);
    setText(text, recent.predicted_cached_tokens ? `${hit} hit, ${expected} predicted` : `${hit} hit`);
  }
}
