// The way to the router: asks for the document once a second, keeps the timeline together, and says how the connection
// is. Polling, because a stream of server-sent events cannot carry the admin key in a header.

const PERIOD_MS = 1000;
const TIMEOUT_MS = 5000;
const LONGEST_PAUSE_MS = 8000;
const KEPT_SAMPLES = 600;
const VERSION = 1;
const KEY = "m3-admin-key";

export class Feed {
  /** onState(document), onConnection("live" | "lost" | "denied", message) */
  constructor(onState, onConnection) {
    this.onState = onState;
    this.onConnection = onConnection;
    this.timeline = { last: 0, time: 0, step_seconds: 1, requests: [], series: new Map() };
    this.failures = 0;
    this.lastAnswer = null;
    this.timer = null;
    document.addEventListener("visibilitychange", () => this.again(document.hidden ? null : 0));
  }

  start() {
    this.again(0);
  }

  useKey(key) {
    sessionStorage.setItem(KEY, key);
    this.again(0);
  }

  /** POST an act. Returns its message, throws an Error with the reason. */
  async act(name, fields) {
    const headers = { ...this.headers(), "content-type": "application/json" };
    const answer = await fetch(`api/acts/${name}`, { method: "POST", headers, body: JSON.stringify(fields) });
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(body.error ?? `The router answered ${answer.status}.`);
    this.again(0);
    return body.message;
  }

  /** The settled requests of the journal as a file. Throws an Error with the reason. */
  async table() {
    const answer = await fetch("api/usage.csv", { headers: this.headers(), cache: "no-store" });
    if (answer.ok) return answer.blob();
    const body = await answer.json().catch(() => ({}));
    throw new Error(body.error ?? `The router answered ${answer.status}.`);
  }

  headers() {
    const key = sessionStorage.getItem(KEY);
    return key ? { authorization: `Bearer ${key}` } : {};
  }

  /** Ask after a time; null: not before somebody looks again. */
  again(milliseconds) {
    clearTimeout(this.timer);
    if (milliseconds !== null) this.timer = setTimeout(() => this.ask(), milliseconds);
  }

  async ask() {
    clearTimeout(this.timer);
    if (this.asking) return;
    this.asking = true;
    let pause = PERIOD_MS;
    try {
      const answer = await fetch(`api/state?since=${this.timeline.last}`, {
        headers: this.headers(),
        signal: AbortSignal.timeout(TIMEOUT_MS),
        cache: "no-store",
      });
      if (answer.status === 401 || answer.status === 403) {
        const { error } = await answer.json();
        const wasWrong = sessionStorage.getItem(KEY) !== null;
        sessionStorage.removeItem(KEY);
        this.onConnection("denied", error, answer.status === 401, wasWrong);
        pause = null;
        return;
      }
      if (!answer.ok) throw new Error(`it answered ${answer.status}`);
      const state = await answer.json();
      if (state.version !== VERSION) throw new Error("it is of another version; load this page again");
      this.merge(state);
      this.failures = 0;
      this.lastAnswer = Date.now();
      this.onConnection("live", "");
      this.onState(state, this.timeline);
    } catch (error) {
      this.failures += 1;
      pause = Math.min(PERIOD_MS * 2 ** (this.failures - 1), LONGEST_PAUSE_MS);
      this.onConnection("lost", reason(error), this.lastAnswer);
    } finally {
      this.asking = false;
      this.again(document.hidden ? null : pause);
    }
  }

  /** Add the samples that came, and drop those that have become too old. */
  merge(state) {
    const came = state.timeline;
    const ours = this.timeline;
    const follows = came.first === ours.last + 1;
    const length = follows ? ours.requests.length : 0;
    const samples = came.requests.length;
    const series = new Map();
    for (const one of came.series) {
      const key = `${one.pool}\n${one.lane}`;
      const old = follows ? ours.series.get(key) : undefined;
      series.set(key, {
        pool: one.pool,
        lane: one.lane,
        tokens: joined(old?.tokens, one.in_flight_tokens, length),
        waiting: joined(old?.waiting, one.waiting, length),
      });
    }
    if (follows) {
      for (const [key, old] of ours.series) {
        if (series.has(key)) continue;
        const none = new Array(samples).fill(0);
        const gone = { ...old, tokens: joined(old.tokens, none, length), waiting: joined(old.waiting, none, length) };
        if (gone.tokens.some(Boolean) || gone.waiting.some(Boolean) || samples === 0) series.set(key, gone);
      }
    }
    this.timeline = {
      last: came.last,
      time: came.time || ours.time,
      step_seconds: came.step_seconds,
      requests: joined(follows ? ours.requests : undefined, came.requests, length),
      series,
    };
  }
}

function joined(old, came, length) {
  return [...(old ?? new Array(length).fill(0)), ...came].slice(-KEPT_SAMPLES);
}

function reason(error) {
  if (error.name === "TimeoutError") return `no answer within ${TIMEOUT_MS / 1000} s`;
  if (error instanceof TypeError) return "it cannot be reached";
  return error.message;
}
